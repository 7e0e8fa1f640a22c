//! Data sources against PIL, NumPy's formats, and the ways in which a user's data can be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array4, ArrayD};
use ndarray_npy::{NpzReader, NpzWriter, write_npy};

use super::*;

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/images");

fn known(dims: &[i64]) -> Vec<Dim> {
    dims.iter().map(|d| Dim::Known(*d)).collect()
}

fn spec(name: &str, dtype: DType, dims: &[i64]) -> InputSpec {
    let mut dims = known(dims);
    if dims.first() == Some(&Dim::Known(0)) {
        dims[0] = Dim::Symbol("batch".into());
    }
    InputSpec { name: name.into(), dtype, dims, mask: false, rows: None, cache: false }
}

fn from(path: &Path) -> DataOptions {
    DataOptions { calibrate: Some(path.to_path_buf()), ..DataOptions::default() }
}

fn open_err(options: &DataOptions, specs: &[InputSpec]) -> String {
    Dataset::open(options, specs).expect_err("must be refused").to_string()
}

/// Levels 0..255 of an image sample; the uint8 input gets them as they are.
fn levels(d: &Dataset, i: usize) -> Vec<u8> {
    d.sample(i).unwrap().inputs[0].1.values::<u8>().unwrap().to_vec()
}

fn png(dir: &Path, name: &str, width: u32, height: u32, f: impl Fn(u32, u32) -> [u8; 3]) -> PathBuf {
    let path = dir.join(name);
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb(f(x, y))).save(&path).unwrap();
    path
}

#[test]
fn a_picture_whose_decoder_panics_is_an_error() {
    use super::extras::tests::part;
    let dir = tempfile::tempdir().unwrap();
    let mut rows = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    // Eight rows of eight pixels, without a filter, each of the second colour.
    std::io::Write::write_all(&mut rows, &[0, 1, 1, 1, 1, 1, 1, 1, 1].repeat(8)).unwrap();
    let head = [&8u32.to_be_bytes()[..], &8u32.to_be_bytes(), &[8, 3, 0, 0, 0]].concat();
    // The second colour lacks its blue.
    let palette = part(b"PLTE", &[1, 2, 3, 4, 5]);
    let parts = [part(b"IHDR", &head), palette, part(b"IDAT", &rows.finish().unwrap()), part(b"IEND", &[])];
    fs::write(dir.path().join("a.png"), [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat()).unwrap();
    let data =
        Dataset::open(&DataOptions { resize: Some(0), ..from(dir.path()) }, &[spec("x", DType::UINT8, &[0, 8, 8, 3])]);
    let e = data.and_then(|d| d.sample(0)).map(|_| ()).expect_err("must be refused").to_string();
    assert!(e.contains("a.png") && e.contains("its decoder does not expect"), "{e}");
}

#[test]
fn pictures_come_out_as_from_pil() {
    let mut pil = NpzReader::new(fs::File::open(format!("{IMAGES}/pil.npz")).unwrap()).unwrap();
    let u8s = spec("x", DType::UINT8, &[0, 32, 32, 3]);
    let as_stored = DataOptions { exif: Some(Exif::Ignore), ..from(Path::new(IMAGES)) };
    let resized =
        Dataset::open(&DataOptions { resize: Some(40), ..as_stored.clone() }, std::slice::from_ref(&u8s)).unwrap();
    let raw = Dataset::open(&DataOptions { resize: Some(0), ..as_stored }, &[u8s]).unwrap();
    assert_eq!(raw.len(), 11);
    for i in 0..raw.len() {
        let name = raw.sample(i).unwrap().name;
        for (data, key) in [(&raw, format!("{name}.raw")), (&resized, name.clone())] {
            let want: ArrayD<u8> = pil.by_name(&key).unwrap();
            let got = levels(data, i);
            let diffs: Vec<u32> = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b) as u32).collect();
            let (sum, max) = (diffs.iter().sum::<u32>(), diffs.iter().max().unwrap());
            let mean = sum as f64 / diffs.len() as f64;
            // A JPEG decoder may round its transform and its colour conversion its own way; PNG has no such freedom.
            let (mean_ok, max_ok) = match (name.ends_with(".png"), key.ends_with(".raw")) {
                (true, true) => (0.0, 0),
                (true, false) => (0.02, 1),
                (false, _) => (0.6, 5),
            };
            assert!(mean <= mean_ok && *max <= max_ok, "{key}: mean {mean:.4}, max {max}");
        }
    }
}

#[test]
fn normalisation_has_numpys_bits() {
    let mut pil = NpzReader::new(fs::File::open(format!("{IMAGES}/pil.npz")).unwrap()).unwrap();
    let want: ArrayD<f32> = pil.by_name("normalised").unwrap();
    let options = DataOptions { resize: Some(0), ..from(Path::new(IMAGES)) };
    let d = Dataset::open(&options, &[spec("x", DType::FLOAT, &[0, 3, 32, 32])]).unwrap();
    let i = (0..d.len()).find(|i| d.sample(*i).unwrap().name == "rgb.png").unwrap();
    let sample = d.sample(i).unwrap();
    assert_eq!(sample.inputs[0].1.dims(), [1, 3, 32, 32]);
    assert_eq!(sample.inputs[0].1.f32s().to_vec(), want.iter().copied().collect::<Vec<f32>>());
}

#[test]
fn layout_and_type_follow_the_input() {
    let dir = tempfile::tempdir().unwrap();
    png(dir.path(), "a.png", 6, 5, |x, y| [x as u8, 10 * y as u8, 200]);
    let options = DataOptions { resize: Some(0), mean: vec![0.0], std: vec![1.0], ..from(dir.path()) };
    let get = |s: InputSpec| Dataset::open(&options, &[s]).unwrap().sample(0).unwrap().inputs.remove(0).1;
    let nchw = get(spec("x", DType::FLOAT, &[0, 3, 3, 4]));
    // offsets (6 - 4) / 2 and (5 - 3) / 2
    assert_eq!(nchw.f32s()[..4], [1.0 / 255.0, 2.0 / 255.0, 3.0 / 255.0, 4.0 / 255.0]);
    assert_eq!(nchw.f32s()[12..16], [10.0 / 255.0; 4]);
    let nhwc = get(spec("x", DType::FLOAT, &[0, 3, 4, 3]));
    assert_eq!(nhwc.dims(), [1, 3, 4, 3], "both could be channels: the second one is");
    let nhwc = get(spec("x", DType::FLOAT, &[0, 4, 4, 3]));
    assert_eq!(nhwc.dims(), [1, 4, 4, 3]);
    assert_eq!(nhwc.f32s()[..6], [1.0, 0.0, 200.0, 2.0, 0.0, 200.0].map(|v: f32| v / 255.0));
    assert!(matches!(get(spec("x", DType::FLOAT16, &[0, 3, 3, 4])), Array::F16(_)));
    let luma = get(spec("x", DType::UINT8, &[0, 1, 3, 4]));
    let expect = (19_595 + 10 * 38_470 + 200 * 7_471 + 0x8000) >> 16;
    assert_eq!(luma.values::<u8>().unwrap()[0], expect as u8);
    let open = InputSpec {
        name: "x".into(),
        dtype: DType::FLOAT,
        dims: vec![Dim::Unknown, Dim::Known(3), Dim::Unknown, Dim::Unknown],
        mask: false,
        rows: None,
        cache: false,
    };
    let d = Dataset::open(&DataOptions { crop: Some(2), ..options.clone() }, &[open]).unwrap();
    assert_eq!(d.sample(0).unwrap().inputs[0].1.dims(), [1, 3, 2, 2]);
    assert!(d.notes().iter().all(|n| n.starts_with("pictures: ")), "{:?}", d.notes());
}

#[test]
fn sixteen_bit_pictures_keep_their_high_byte() {
    let dir = tempfile::tempdir().unwrap();
    image::ImageBuffer::<image::Luma<u16>, _>::from_fn(4, 4, |x, _| image::Luma([x as u16 * 0x1234]))
        .save(dir.path().join("g.png"))
        .unwrap();
    image::ImageBuffer::<image::Rgb<u16>, _>::from_fn(4, 4, |x, _| image::Rgb([x as u16 * 0x1234, 0xFFFF, 0x00FF]))
        .save(dir.path().join("r.png"))
        .unwrap();
    let options = DataOptions { resize: Some(0), ..from(dir.path()) };
    let d = Dataset::open(&options, &[spec("x", DType::UINT8, &[0, 4, 4, 3])]).unwrap();
    assert_eq!(levels(&d, 0)[..6], [0, 0, 0, 0x12, 0x12, 0x12]);
    assert_eq!(levels(&d, 1)[..6], [0, 255, 0, 0x12, 255, 0]);
}

#[test]
fn folders_are_read_in_name_order_or_that_of_the_labels() {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in ["b.png", "a.PNG", "Z.png"].iter().enumerate() {
        png(dir.path(), name, 4, 4, |_, _| [i as u8; 3]);
    }
    fs::write(dir.path().join("readme.txt"), "no image").unwrap();
    let x = [spec("x", DType::UINT8, &[0, 3, 4, 4])];
    let options = DataOptions { resize: Some(0), ..from(dir.path()) };
    let d = Dataset::open(&options, &x).unwrap();
    assert_eq!((0..3).map(|i| d.sample(i).unwrap().name).collect::<Vec<_>>(), ["Z.png", "a.PNG", "b.png"]);
    assert_eq!((levels(&d, 0)[0], levels(&d, 1)[0], d.labels()), (2, 1, None));

    let labels = dir.path().join("labels.txt");
    fs::write(&labels, "b.png 3\r\n\na.PNG\t7\n").unwrap();
    let d = Dataset::open(&options, &x).unwrap();
    assert_eq!((d.len(), d.labels()), (2, Some(&[3i64, 7][..])));
    let s = d.sample(1).unwrap();
    assert_eq!((s.name.as_str(), s.labels), ("a.PNG", Some(vec![7])));

    fs::write(&labels, "b.png -1\na.PNG -1\n").unwrap();
    assert_eq!(Dataset::open(&options, &x).unwrap().labels(), None);
    for (text, say) in [
        ("b.png", "line 1"),
        ("b.png 1\na.PNG cat", "line 2"),
        ("b.png 1\ngone.png 2", "gone.png"),
        ("b.png 1\na.PNG -1", "negative"),
        ("\n", "no image"),
    ] {
        fs::write(&labels, text).unwrap();
        let e = open_err(&options, &x);
        assert!(e.contains(say) && e.contains("labels.txt"), "{text:?}: {e}");
    }
}

#[test]
fn a_folder_that_can_not_serve_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let x = [spec("x", DType::FLOAT, &[0, 3, 4, 4])];
    assert!(open_err(&from(&dir.path().join("gone")), &x).contains("no such file or folder"));
    assert!(open_err(&from(dir.path()), &x).contains("empty"));
    fs::write(dir.path().join("notes.txt"), "").unwrap();
    assert!(open_err(&from(dir.path()), &x).contains("no JPEG, PNG, WebP or BMP picture"));
    assert!(open_err(&from(&dir.path().join("notes.txt")), &x).contains("neither a folder"));

    let whole = fs::read(format!("{IMAGES}/rgb.jpg")).unwrap();
    fs::write(dir.path().join("cut.jpg"), &whole[..whole.len() / 2]).unwrap();
    let e = open_err(&from(dir.path()), &x);
    assert!(e.contains("cut.jpg (cut off"), "{e}");
    fs::write(dir.path().join("cut.jpg"), "not a picture").unwrap();
    let e = open_err(&from(dir.path()), &x);
    assert!(e.contains("1 of 1 pictures") && e.contains("cut.jpg (no picture, whatever its name says)"), "{e}");
    let whole = fs::read(format!("{IMAGES}/rgb.png")).unwrap();
    fs::write(dir.path().join("cut.jpg"), &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(Dataset::open(&from(dir.path()), &x).unwrap().sample(0), Err(DataError::Decode { .. })));
    assert!(open_err(&from(&dir.path().join("cut.jpg")), &x).contains("the folder that holds"));
    fs::remove_file(dir.path().join("cut.jpg")).unwrap();

    png(dir.path(), "small.png", 3, 8, |_, _| [0; 3]);
    let e = open_err(&DataOptions { resize: Some(0), ..from(dir.path()) }, &x);
    assert!(e.contains("small.png: 3x8 pixels cannot be cropped to 4x4") && e.contains("--resize 4"), "{e}");
    assert!(open_err(&DataOptions { crop: Some(5), ..from(dir.path()) }, &x).contains("--crop 5"));
    assert!(open_err(&from(dir.path()), &[spec("x", DType::FLOAT, &[0, 197, 64])]).contains("not an image"));
    assert!(open_err(&from(dir.path()), &[x[0].clone(), x[0].clone()]).contains(".npz"));
    assert!(open_err(&DataOptions { mean: vec![0.5; 2], ..from(dir.path()) }, &x).contains("--mean has 2"));
    assert!(open_err(&DataOptions { std: vec![0.0], ..from(dir.path()) }, &x).contains("--std 0"));
    assert!(open_err(&DataOptions { samples: Some(0), ..from(dir.path()) }, &x).contains("--samples 0"));
    assert!(open_err(&from(dir.path()), &[]).contains("no input"));
}

#[test]
fn what_can_not_be_read_is_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let x = [spec("x", DType::UINT8, &[0, 3, 4, 4])];
    (0..3).for_each(|i| drop(png(dir.path(), &format!("{i}.png"), 4, 4, |_, _| [0; 3])));
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("a.avif", b"\0\0\0\x20ftypavif....");
    put("b.jpg", b"\0\0\0\x20ftypavif....");
    put("c.tif", b"II*\0........");
    let e = open_err(&from(dir.path()), &x);
    for part in ["3 of 6 pictures cannot be read", "a.avif (AVIF", "b.jpg (AVIF", "c.tif (TIFF", "convert them"] {
        assert!(e.contains(part), "{part}: {e}");
    }
    ["a.avif", "b.jpg", "c.tif"].iter().for_each(|f| fs::remove_file(dir.path().join(f)).unwrap());
    // Only what is used is looked at.
    put("9.png", b"");
    let all = from(dir.path());
    assert!(open_err(&all, &x).contains("9.png (the file is empty)"));
    assert_eq!(Dataset::open(&DataOptions { samples: Some(1), ..all.clone() }, &x).unwrap().len(), 1);
    fs::remove_file(dir.path().join("9.png")).unwrap();
    put("notes.md", b"words");
    put("BMW.txt", b"BMW is a car");
    put(".DS_Store", b"x");
    let d = Dataset::open(&all, &x).unwrap();
    assert_eq!(d.len(), 3);
    assert!(d.notes()[0].ends_with("no pictures, and left out: BMW.txt, notes.md"), "{:?}", d.notes());
}

#[test]
fn folders_are_classes() {
    let dir = tempfile::tempdir().unwrap();
    let x = [spec("x", DType::UINT8, &[0, 3, 4, 4])];
    for (class, name) in [("cat", "a.png"), ("cat/kittens", "k.png"), ("ant", "b.png"), ("dog", "c.png")] {
        fs::create_dir_all(dir.path().join(class)).unwrap();
        png(dir.path(), &format!("{class}/{name}"), 4, 4, |_, _| [0; 3]);
    }
    let d = Dataset::open(&from(dir.path()), &x).unwrap();
    let names: Vec<String> = (0..d.len()).map(|i| d.sample(i).unwrap().name).collect();
    assert_eq!(names, ["ant/b.png", "cat/a.png", "cat/kittens/k.png", "dog/c.png"]);
    assert_eq!((d.labels(), d.class_folders()), (Some(&[0i64, 1, 1, 2][..]), Some(3)));
    assert!(d.notes()[0].contains("3 folders of pictures; ant is class 0"), "{:?}", d.notes());
    // Numbers are classes themselves, whichever are there.
    for (from, to) in [("ant", "7"), ("cat", "12"), ("dog", "100")] {
        fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    }
    let d = Dataset::open(&from(dir.path()), &x).unwrap();
    assert_eq!((d.labels(), d.class_folders()), (Some(&[100i64, 12, 12, 7][..]), None));
    // A file of labels counts before folders, wherever it lies.
    let other = tempfile::tempdir().unwrap();
    let labels = other.path().join("val.txt");
    fs::write(&labels, "7/b.png 3\n100/c.png 4\n").unwrap();
    let o = DataOptions { labels: Some(labels.clone()), ..from(dir.path()) };
    assert_eq!(Dataset::open(&o, &x).unwrap().labels(), Some(&[3i64, 4][..]));
    fs::write(&labels, "8/b.png 3\n").unwrap();
    assert!(open_err(&o, &x).contains("has no file \"8/b.png\""));
    // Pictures in the folder itself are what is meant.
    png(dir.path(), "own.png", 4, 4, |_, _| [0; 3]);
    let d = Dataset::open(&from(dir.path()), &x).unwrap();
    assert_eq!((d.len(), d.labels()), (1, None));
    assert!(d.notes()[0].contains("not looked into: 100, 12, 7"), "{:?}", d.notes());
}

#[test]
fn what_lies_beside_the_model_counts_and_says_where_it_is_from() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    png(&pictures, "a.png", 8, 4, |x, _| [x as u8; 3]);
    let model = dir.path().join("m.onnx");
    let config = dir.path().join("preprocessor_config.json");
    let x = [spec("x", DType::FLOAT, &[0, 3, 4, 4])];
    // What lies there is read once for each set of options.
    let o = || from(&pictures).beside(&model);
    let told = |o: &DataOptions| Dataset::open(o, &x).unwrap().notes().join("; ");
    assert!(told(&o()).contains("short side 5 (bicubic), crop 4x4, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (from preset imagenet, the default)"), "{}", told(&o()));
    fs::write(
        &config,
        r#"{"image_mean": [0.5], "image_std": [0.25], "size": {"height": 8, "width": 8}, "resample": 2}"#,
    )
    .unwrap();
    let all = told(&o());
    assert!(all.contains("is for pictures of 8x8, and input \"x\" is float[batch, 3, 4, 4]"), "{all}");
    assert!(
        all.contains("squashed to 4x4 (bilinear), crop 4x4, mean 0.5, std 0.25 (from ")
            && all.contains("preprocessor_config.json)"),
        "{all}"
    );
    assert!(
        told(&DataOptions { mean: vec![0.1], ..o() }).contains("mean 0.1, std 0.25 (from flags, and for the rest ")
    );
    assert!(told(&DataOptions { preset: Preset::named("clip"), ..o() }).contains("(from preset clip)"));
    assert!(told(&DataOptions { preprocessor: Some("none".into()), ..o() }).contains("the default"));
    let open = InputSpec { dims: vec![Dim::Unknown, Dim::Known(3), Dim::Unknown, Dim::Unknown], ..x[0].clone() };
    assert_eq!(Dataset::open(&o(), &[open]).unwrap().sample(0).unwrap().inputs[0].1.dims(), [1, 3, 8, 8]);
    // Made-up pictures are normalised as it says, too.
    let made = Dataset::open(&DataOptions { calibrate: None, samples: Some(1), ..o() }, &x).unwrap();
    assert!(made.sample(0).unwrap().inputs[0].1.f32s().iter().all(|v| (-2.0..=2.0).contains(v)));
    for (text, say) in [
        ("{", "not JSON"),
        (r#"{"image_mean": "a"}"#, "image_mean: \"a\" is not understood"),
        (r#"{"image_mean": [0.5], "image_std": [0]}"#, "positive"),
        (r#"{"image_mean": [0.5], "size": -3}"#, "size: -3"),
        (r#"{"image_mean": [0.5], "resample": 9}"#, "resample: 9"),
        (r#"{"pretrained_cfg": {"crop_mode": "odd"}}"#, "crop_mode: \"odd\""),
        (r#"{"pretrained_cfg": {"crop_pct": 7}}"#, "crop_pct: 7"),
    ] {
        fs::write(&config, text).unwrap();
        let e = open_err(&o(), &x);
        assert!(
            e.contains(say) && e.contains("preprocessor_config.json") && e.contains("--preprocessor none"),
            "{text}: {e}"
        );
    }
    fs::write(&config, r#"{"feature_size": 80}"#).unwrap();
    assert!(told(&o()).contains("the default"), "it is no file about pictures");
    let e = open_err(&DataOptions { preprocessor: Some(config), ..o() }, &x);
    assert!(e.contains("says nothing of pictures"), "{e}");
}

#[test]
fn numbers_for_pixels_to_255_are_refused() {
    let x = [spec("x", DType::FLOAT, &[0, 3, 4, 4])];
    let e = open_err(&DataOptions { mean: vec![127.5], ..DataOptions::default() }, &x);
    assert!(e.contains("--mean 127.5") && e.contains("it would be --mean 0.5"), "{e}");
    let e = open_err(&DataOptions { std: vec![58.4, 57.12, 57.4], ..DataOptions::default() }, &x);
    assert!(e.contains("--std 0.229"), "{e}");
}

#[test]
fn samples_are_spread_and_batches_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    write_npy(&path, &Array2::from_shape_fn((10, 2), |(i, j)| (10 * i + j) as f32)).unwrap();
    let first = |options: &DataOptions, batch: i64| {
        let d = Dataset::open(options, &[spec("x", DType::FLOAT, &[batch, 2])]).unwrap();
        let rows: Vec<Vec<f32>> = (0..d.len()).map(|i| d.sample(i).unwrap().inputs[0].1.f32s().to_vec()).collect();
        (rows, d.notes().join("; "))
    };
    let (rows, notes) = first(&DataOptions { samples: Some(4), ..from(&path) }, 0);
    assert_eq!(rows, [[0.0, 1.0], [20.0, 21.0], [50.0, 51.0], [70.0, 71.0]], "i * 10 / 4");
    assert_eq!(notes, "");
    let (rows, notes) = first(&from(&path), 4);
    assert_eq!((rows.len(), rows[1][0], rows[1][7]), (2, 40.0, 71.0));
    assert!(notes.contains("2 samples do not fill a batch of 4"), "{notes}");
    let (rows, notes) = first(&DataOptions { samples: Some(99), ..from(&path) }, 0);
    assert_eq!(rows.len(), 10);
    assert!(notes.contains("99 samples were asked for, there are 10"), "{notes}");
    assert!(
        open_err(&DataOptions { samples: Some(3), ..from(&path) }, &[spec("x", DType::FLOAT, &[4, 2])])
            .contains("batch of 4")
    );
    let d = Dataset::open(&from(&path), &[spec("x", DType::FLOAT, &[4, 2])]).unwrap();
    assert_eq!(d.sample(1).unwrap().name, "x.npy[4] .. x.npy[7]");
    assert!(matches!(d.sample(2), Err(DataError::OutOfRange { index: 2, len: 2 })));
}

#[test]
fn npz_feeds_inputs_by_name_compressed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [spec("tokens", DType::INT64, &[0, 3]), spec("scale", DType::FLOAT, &[0])];
    let write = |name: &str, compressed: bool| {
        let path = dir.path().join(name);
        let f = fs::File::create(&path).unwrap();
        let mut z = if compressed { NpzWriter::new_compressed(f) } else { NpzWriter::new(f) };
        z.add_array("scale", &Array1::from(vec![1u8, 2])).unwrap();
        z.add_array("tokens", &Array2::from_shape_fn((2, 3), |(i, j)| (i * 3 + j) as i32)).unwrap();
        z.add_array("labels", &Array1::from(vec![4i32, 5])).unwrap();
        z.add_array("other", &Array1::from(vec![0.0f32])).unwrap();
        z.finish().unwrap();
        path
    };
    let samples = [write("a.npz", false), write("b.npz", true)].map(|path| {
        let d = Dataset::open(&from(&path), &specs).unwrap();
        assert_eq!(d.labels(), Some(&[4i64, 5][..]));
        assert!(d.notes()[0].contains("ignored: other"));
        d.sample(1).unwrap().inputs
    });
    assert_eq!(samples[0], samples[1]);
    assert_eq!(samples[0][0], ("tokens".to_string(), Array::new(&[1, 3], vec![3i64, 4, 5]).unwrap()));
    assert_eq!(samples[0][1], ("scale".to_string(), Array::new(&[1], vec![2.0f32]).unwrap()));
    let path = dir.path().join("a.npz");
    let e = open_err(&from(&path), &[spec("pixels", DType::FLOAT, &[0, 3])]);
    assert!(e.contains("\"pixels\"") && e.contains("tokens"), "{e}");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(open_err(&from(&path), &specs).contains("a.npz"));
}

#[test]
fn arrays_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let x = spec("x", DType::FLOAT, &[0, 3, 4, 4]);
    write_npy(&path, &Array4::<f32>::zeros((2, 3, 4, 5))).unwrap();
    let e = open_err(&from(&path), std::slice::from_ref(&x));
    assert!(e.contains("x.npy") && e.contains("[2, 3, 4, 5]") && e.contains("[samples, 3, 4, 4]"), "{e}");
    write_npy(&path, &Array4::<f32>::zeros((0, 3, 4, 4))).unwrap();
    assert!(open_err(&from(&path), std::slice::from_ref(&x)).contains("no sample"));
    assert!(open_err(&from(&path), &[x.clone(), spec("y", DType::FLOAT, &[0, 1])]).contains(".npz with these names"));
    let mut a = Array4::<f32>::zeros((3, 3, 4, 4));
    a[[1, 2, 0, 0]] = f32::NAN;
    write_npy(&path, &a).unwrap();
    let d = Dataset::open(&from(&path), std::slice::from_ref(&x)).unwrap();
    assert!(d.sample(0).is_ok());
    let e = d.sample(1).unwrap_err().to_string();
    assert!(e.contains("\"x\"") && e.contains("sample 1") && e.contains("NaN"), "{e}");
    let d = Dataset::open(&from(&path), &[spec("x", DType::FLOAT, &[3, 3, 4, 4])]).unwrap();
    assert!(matches!(d.sample(0), Err(DataError::NonFinite { sample: 1, .. })), "the item in the batch is named");
    write_npy(&path, &Array2::from_elem((1, 2), 300i64)).unwrap();
    let d = Dataset::open(&from(&path), &[spec("x", DType::UINT8, &[0, 2])]).unwrap();
    let e = d.sample(0).unwrap_err().to_string();
    assert!(e.contains("300 (int64)") && e.contains("uint8"), "{e}");

    let f = fs::File::create(dir.path().join("l.npz")).unwrap();
    let mut z = NpzWriter::new(f);
    z.add_array("x", &Array1::from(vec![0.0f32; 3])).unwrap();
    z.add_array("labels", &Array1::from(vec![0i64; 2])).unwrap();
    z.finish().unwrap();
    let e = open_err(&from(&dir.path().join("l.npz")), &[spec("x", DType::FLOAT, &[0])]);
    assert!(e.contains("\"labels\": 2 samples, but \"x\" has 3"), "{e}");
}

#[test]
fn synthetic_samples_do_not_depend_on_who_asks() {
    let options = DataOptions { samples: Some(5), seed: 3, ..DataOptions::default() };
    let specs = [
        spec("x", DType::FLOAT, &[0, 3, 20, 28]),
        spec("ids", DType::INT32, &[0, 7]),
        spec("v", DType::FLOAT, &[0, 9]),
    ];
    let d = Dataset::open(&options, &specs).unwrap();
    let forward: Vec<Sample> = (0..5).map(|i| d.sample(i).unwrap()).collect();
    let threads = std::thread::scope(|s| {
        let jobs: Vec<_> = (0..5)
            .rev()
            .map(|i| {
                s.spawn({
                    let d = &d;
                    move || d.sample(i).unwrap()
                })
            })
            .collect();
        jobs.into_iter().map(|j| j.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(forward, threads.into_iter().rev().collect::<Vec<_>>());
    assert!(d.is_synthetic() && d.description().contains("seed 3"));
    let other = Dataset::open(&DataOptions { seed: 4, ..options.clone() }, &specs).unwrap();
    assert_ne!(forward[0].inputs, other.sample(0).unwrap().inputs);
    assert_ne!(forward[0].inputs, forward[1].inputs);
    let ids = forward[0].inputs[1].1.values::<i32>().unwrap();
    assert!(ids.iter().all(|x| (0..50).contains(x)) && ids.iter().any(|x| *x != ids[0]));
    // A batch of 5 holds the very same items.
    let batch = [
        spec("x", DType::FLOAT, &[5, 3, 20, 28]),
        spec("ids", DType::INT32, &[0, 7]),
        spec("v", DType::FLOAT, &[0, 9]),
    ];
    let b = Dataset::open(&options, &batch).unwrap().sample(0).unwrap();
    assert_eq!(b.inputs[0].1.dims(), [5, 3, 20, 28]);
    assert_eq!(b.inputs[2].1.f32s()[9..18], forward[1].inputs[2].1.f32s()[..]);
}

#[test]
fn synthetic_bytes_are_pinned() {
    let options = DataOptions { samples: Some(2), seed: 1, ..DataOptions::default() };
    let specs = [
        spec("x", DType::UINT8, &[0, 3, 56, 56]),
        spec("v", DType::FLOAT, &[0, 40]),
        spec("i", DType::INT64, &[0, 40]),
    ];
    let s = Dataset::open(&options, &specs).unwrap().sample(1).unwrap();
    let mut h = blake3::Hasher::new();
    h.update(&s.inputs[0].1.values::<u8>().unwrap());
    s.inputs[1].1.f32s().iter().for_each(|x| {
        h.update(&x.to_le_bytes());
    });
    s.inputs[2].1.values::<i64>().unwrap().iter().for_each(|x| {
        h.update(&x.to_le_bytes());
    });
    assert_eq!(&h.finalize().to_hex()[..16], "fc75447ed858ed60");
}

/// Adds the amplitude spectrum of an `n` by `n` plane to the bins, by rows and columns, with another planner than the
/// generator's.
fn add_spectrum(bins: &mut [(f64, usize)], plane: impl Iterator<Item = f64>, n: usize) {
    let mut fft = rustfft::FftPlanner::<f64>::new();
    let mut z: Vec<_> = plane.map(|x| rustfft::num_complex::Complex::new(x, 0.0)).collect();
    fft.plan_fft_forward(n).process(&mut z);
    let mut t: Vec<_> = (0..n * n).map(|k| z[k % n * n + k / n]).collect();
    fft.plan_fft_forward(n).process(&mut t);
    for (k, z) in t.iter().enumerate() {
        let signed = |k: usize| if k > n / 2 { n - k } else { k } as f64;
        let f = (signed(k % n).powi(2) + signed(k / n).powi(2)).sqrt().round() as usize;
        if (1..n / 2).contains(&f) {
            bins[f].0 += z.norm();
            bins[f].1 += 1;
        }
    }
}

/// Exponent of the spectrum's fall.
fn slope(bins: &[(f64, usize)]) -> f64 {
    let points: Vec<(f64, f64)> = (2..40).map(|f| ((f as f64).ln(), (bins[f].0 / bins[f].1 as f64).ln())).collect();
    let k = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / k, points.iter().map(|p| p.1).sum::<f64>() / k);
    points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum::<f64>() / points.iter().map(|p| (p.0 - mx).powi(2)).sum::<f64>()
}

#[test]
fn synthetic_textures_fall_like_one_over_frequency() {
    use rand::SeedableRng;
    let n = 128usize;
    let mut bins = vec![(0.0f64, 0usize); n / 2];
    for seed in 0..6 {
        let field = super::synthetic::field(n, n, &mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
        let (mean, power) = (field.iter().sum::<f64>(), field.iter().map(|z| z * z).sum::<f64>() / (n * n) as f64);
        assert!(mean.abs() < 1e-6 && (power - 1.0).abs() < 1e-9, "{mean} {power}");
        add_spectrum(&mut bins, field.into_iter(), n);
    }
    assert!((slope(&bins) + 1.0).abs() < 0.02, "slope {}", slope(&bins));
}

#[test]
fn synthetic_pictures_have_the_statistics_of_photographs() {
    let n = 128usize;
    let d = Dataset::open(
        &DataOptions { samples: Some(6), ..DataOptions::default() },
        &[spec("x", DType::UINT8, &[0, 3, n as i64, n as i64])],
    )
    .unwrap();
    let mut bins = vec![(0.0f64, 0usize); n / 2];
    let (mut cov, mut var, mut means) = ([0.0f64; 3], [0.0f64; 3], [0.0f64; 3]);
    // Second and fourth moments of the steps between neighbours.
    let (mut m2, mut m4) = (0.0f64, 0.0f64);
    for i in 0..d.len() {
        let v: Vec<f64> = levels(&d, i).iter().map(|x| *x as f64 / 255.0).collect();
        let planes: Vec<&[f64]> = v.chunks(n * n).collect();
        let mean: Vec<f64> = planes.iter().map(|p| p.iter().sum::<f64>() / p.len() as f64).collect();
        for c in 0..3 {
            means[c] += mean[c] / d.len() as f64;
            let e = (c + 1) % 3;
            for (x, y) in planes[c].iter().zip(planes[e]) {
                cov[c] += (x - mean[c]) * (y - mean[e]);
                var[c] += (x - mean[c]).powi(2);
            }
        }
        for row in planes[1].chunks(n) {
            for s in row.windows(2).map(|w| w[1] - w[0]) {
                m2 += s.powi(2);
                m4 += s.powi(4);
            }
        }
        add_spectrum(&mut bins, planes[1].iter().map(|x| x - mean[1]), n);
    }
    let slope = slope(&bins);
    assert!((slope + 1.0).abs() < 0.4, "slope {slope}");
    // Edges: few steps are large, most are small. Gaussian steps would give 3.
    let kurtosis = m4 * ((n - 1) * n * d.len()) as f64 / m2.powi(2);
    assert!(kurtosis > 10.0, "kurtosis {kurtosis}");
    for c in 0..3 {
        let r = cov[c] / (var[c] * var[(c + 1) % 3]).sqrt();
        assert!((0.7..0.95).contains(&r), "correlation {c}: {r}");
        assert!((means[c] - [0.485, 0.456, 0.406][c]).abs() < 0.06, "mean {c}: {}", means[c]);
        let std = (var[c] / (n * n * d.len()) as f64).sqrt();
        assert!((std - 0.225).abs() < 0.05, "std {c}: {std}");
    }
}

#[test]
fn synthetic_inputs_without_a_size_get_one() {
    let open = InputSpec {
        name: "x".into(),
        dtype: DType::FLOAT,
        dims: vec![Dim::Unknown, Dim::Known(3), Dim::Symbol("h".into()), Dim::Symbol("w".into())],
        mask: false,
        rows: None,
        cache: false,
    };
    let d = Dataset::open(&DataOptions { samples: Some(1), ..DataOptions::default() }, &[open]).unwrap();
    assert_eq!(d.sample(0).unwrap().inputs[0].1.dims(), [1, 3, 224, 224]);
    assert!(d.notes()[0].contains("224x224"));
    let seq = InputSpec {
        name: "t".into(),
        dtype: DType::BOOL,
        dims: vec![Dim::Unknown, Dim::Unknown],
        mask: false,
        rows: None,
        cache: false,
    };
    let d = Dataset::open(&DataOptions::default(), &[seq]).unwrap();
    assert_eq!((d.len(), d.sample(0).unwrap().inputs[0].1.dims()), (64, &[1usize, 16][..]));
    let text = InputSpec {
        name: "s".into(),
        dtype: DType::STRING,
        dims: vec![Dim::Unknown],
        mask: false,
        rows: None,
        cache: false,
    };
    assert!(open_err(&DataOptions::default(), &[text]).contains("string[?]"));
}

#[test]
fn shapes_that_the_user_gives_are_taken() {
    let spec = InputSpec {
        name: "x".into(),
        dtype: DType::FLOAT,
        dims: vec![Dim::Unknown, Dim::Known(3), Dim::Unknown, Dim::Unknown],
        mask: false,
        rows: None,
        cache: false,
    };
    let with = |shape: &str| DataOptions { samples: Some(2), shape: vec![shape.into()], ..DataOptions::default() };
    let d = Dataset::open(&with("x=1,3,48,320"), std::slice::from_ref(&spec)).unwrap();
    assert_eq!((d.len(), d.sample(0).unwrap().inputs[0].1.dims()), (2, &[1usize, 3, 48, 320][..]));
    let d = Dataset::open(&with("x=2,3,8,8"), std::slice::from_ref(&spec)).unwrap();
    assert_eq!((d.batch(), d.sample(0).unwrap().inputs[0].1.dims()), (2, &[2usize, 3, 8, 8][..]));
    for (bad, word) in
        [("x", "write it as"), ("y=1,3,8,8", "has x"), ("x=1,4,8,8", "[?, 3"), ("x=1,3,0,8", "from 1 on")]
    {
        let e = open_err(&with(bad), std::slice::from_ref(&spec));
        assert!(e.contains(word) && e.contains("--shape"), "{e}");
    }
}

#[test]
fn inputs_of_different_leading_sizes_are_whole_samples() {
    let specs = [
        spec("image", DType::FLOAT, &[1, 2, 2]),
        spec("queries", DType::INT64, &[3, 4]),
        spec("scale", DType::FLOAT, &[]),
    ];
    let d = Dataset::open(&DataOptions { samples: Some(2), ..DataOptions::default() }, &specs).unwrap();
    let dims =
        |d: &Dataset, i: usize| d.sample(i).unwrap().inputs.iter().map(|(_, a)| a.dims().to_vec()).collect::<Vec<_>>();
    assert_eq!((d.len(), d.batch(), dims(&d, 1)), (2, 1, vec![vec![1, 2, 2], vec![3, 4], vec![]]));
    // Rows one after the other, an axis of their own, or the same in every sample.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, queries: &[usize], scale: &[usize]| {
        let path = folder.path().join(name);
        let mut w = ndarray_npy::NpzWriter::new(std::fs::File::create(&path).unwrap());
        let n = |dims: &[usize]| {
            let len: usize = dims.iter().product();
            ndarray::ArrayD::from_shape_vec(dims, (0..len).map(|x| x as f32).collect()).unwrap()
        };
        w.add_array("image", &n(&[2, 2, 2])).unwrap();
        w.add_array("queries", &n(queries).mapv(|x| x as i64)).unwrap();
        w.add_array("scale", &n(scale)).unwrap();
        w.finish().unwrap();
        path
    };
    for (name, queries, scale) in
        [("rows.npz", &[6, 4][..], &[2][..]), ("own.npz", &[2, 3, 4], &[2]), ("once.npz", &[3, 4], &[])]
    {
        let d = Dataset::open(&from(&file(name, queries, scale)), &specs).unwrap();
        assert_eq!((d.len(), dims(&d, 1)), (2, vec![vec![1, 2, 2], vec![3, 4], vec![]]), "{name}");
    }
    let e = open_err(&from(&file("odd.npz", &[5, 4], &[2])), &specs);
    assert!(e.contains("5 rows") && e.contains("queries"), "{e}");
}

#[test]
fn holdout_takes_every_eighth() {
    assert_eq!(split_holdout(17), ((0..17).filter(|i| *i != 7 && *i != 15).collect(), vec![7, 15]));
    assert_eq!(split_holdout(3), (vec![0, 1], vec![2]));
    assert_eq!(split_holdout(1), (vec![0], vec![]));
    assert_eq!(split_holdout(0), (vec![], vec![]));
    for n in 0..100 {
        let (a, b) = split_holdout(n);
        assert_eq!(a.len() + b.len(), n);
    }
}

#[test]
fn the_digits_feed_their_model() {
    let path = |f: &str| PathBuf::from(format!("{}/testdata/digits/{f}", env!("CARGO_MANIFEST_DIR")));
    let model = crate::onnx::load(&path("digits_vit.onnx")).unwrap();
    let specs = InputSpec::of(&model.model.graph).unwrap();
    let calib = Dataset::open(&from(&path("digits_calib.npz")), &specs).unwrap();
    assert_eq!((calib.len(), calib.labels()), (97, None));
    let eval = Dataset::open(&from(&path("digits_eval.npz")), &specs).unwrap();
    assert_eq!(eval.labels().map(<[i64]>::len), Some(500));
    let s = eval.sample(499).unwrap();
    assert_eq!((s.inputs[0].0.as_str(), s.inputs[0].1.dims()), ("input", &[1usize, 1, 8, 8][..]));
    assert_eq!(s.labels.as_deref(), eval.labels().map(|l| &l[499..]));
    // One channel and no data: synthetic pictures of that size.
    let made =
        Dataset::open(&DataOptions { preset: Preset::named("inception"), ..DataOptions::default() }, &specs).unwrap();
    assert!(made.sample(0).unwrap().inputs[0].1.f32s().iter().all(|x| (-1.0..=1.0).contains(x)));
}

#[cfg(feature = "cli")]
#[test]
fn the_flags_are_read() {
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        data: DataOptions,
    }
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|c| c.data);
    assert_eq!(parse("x").unwrap(), DataOptions::default());
    let o = parse(
        "x --calibrate d --preset openai_clip --mean .1 .2 .3 --std 0.1,0.2,0.3 --resize 0 --crop 8 --fit squash --interpolation lanczos --exif ignore --shape x=1,3,8,8 --samples 9 --seed 5",
    );
    let want = DataOptions {
        calibrate: Some("d".into()),
        preset: Preset::named("clip"),
        fit: Some(Fit::Squash),
        interpolation: Some(Interpolation::Lanczos),
        exif: Some(Exif::Ignore),
        mean: vec![0.1, 0.2, 0.3],
        std: vec![0.1, 0.2, 0.3],
        resize: Some(0),
        crop: Some(8),
        shape: vec!["x=1,3,8,8".into()],
        samples: Some(9),
        seed: 5,
        ..DataOptions::default()
    };
    assert_eq!(o.unwrap(), want);
    assert!(parse("x --preset imagenet21k").is_err());
    assert!(parse("x --preset clip --preprocessor p.json").is_err(), "which of them?");
    assert!(parse("x --crop-pct 0.9 --resize 256").is_err() && parse("x --crop-pct 1.5").is_err());
    assert_eq!(parse("x --images d").unwrap().calibrate, Some("d".into()));
}

#[test]
fn a_picture_is_made_once_and_as_many_are_kept_as_there_is_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = png(dir.path(), "a.png", 4, 4, |x, y| [x as u8, y as u8, 7]);
    let x = spec("x", DType::UINT8, &[0, 4, 4, 3]);
    let d = Dataset::open(&DataOptions { resize: Some(0), ..from(dir.path()) }, std::slice::from_ref(&x)).unwrap();
    let first = levels(&d, 0);
    fs::remove_file(&file).unwrap();
    assert_eq!(levels(&d.clone(), 0), first, "it is decoded again");
    // Three of 2048 by 2048 have 36 MB.
    for name in ["a.png", "b.png", "c.png"] {
        png(dir.path(), name, 2048, 2048, |_, _| [9; 3]);
    }
    let x = spec("x", DType::UINT8, &[0, 2048, 2048, 3]);
    let d = Dataset::open(&DataOptions { resize: Some(0), ..from(dir.path()) }, std::slice::from_ref(&x)).unwrap();
    (0..3).for_each(|i| assert_eq!(levels(&d, i).len(), 3 << 22));
    ["a.png", "b.png", "c.png"].iter().for_each(|n| fs::remove_file(dir.path().join(n)).unwrap());
    assert!(d.sample(0).is_ok() && d.sample(1).is_err() && d.sample(2).is_err());
}
