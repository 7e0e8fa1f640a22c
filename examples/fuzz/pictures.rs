//! Pictures that are whole by their own rules: sizes, depths, palettes, tables, chunks and orientations are changed, with the
//! lengths and checksums that belong to them.

use std::error::Error;
use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use image::{DynamicImage, ImageFormat};
use rand::RngExt;

use crate::{Rng, damage, few, number, pick};

/// What a call says about pictures besides.
pub const FLAGS: [&str; 12] = [
    "",
    "",
    " --resize 0",
    " --resize 100000",
    " --resize 8",
    " --preset clip",
    " --fit squash",
    " --fit letterbox",
    " --interpolation nearest",
    " --interpolation lanczos",
    " --exif ignore",
    " --crop 8 --resize 9",
];

/// A picture in the formats, and with the depths, that the folder of test pictures lacks.
pub fn of_other_kinds(png: &[u8]) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let whole = image::load_from_memory(png)?;
    let small = whole.resize_exact(40, 24, image::imageops::FilterType::Triangle);
    let (grey, rgb, rgba) = (small.to_luma8().into(), small.to_rgb8().into(), small.to_rgba8().into());
    let (grey16, rgb16) = (small.to_luma16().into(), small.to_rgb16().into());
    let mut all = Vec::new();
    let mut add = |image: &DynamicImage, format| -> Result<(), image::ImageError> {
        let mut to = Cursor::new(Vec::new());
        image.write_to(&mut to, format)?;
        all.push(to.into_inner());
        Ok(())
    };
    for image in [&grey, &rgb, &rgba] {
        add(image, ImageFormat::Bmp)?;
        add(image, ImageFormat::WebP)?;
    }
    for image in [&grey16, &rgb16, &grey] {
        add(image, ImageFormat::Png)?;
    }
    for image in [&grey, &rgb] {
        add(image, ImageFormat::Jpeg)?;
    }
    Ok(all)
}

/// One of the seeds, changed.
pub fn damaged(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut b = pick(rng, seeds).clone();
    if rng.random_range(0..10) == 0 {
        damage(rng, &mut b);
        return b;
    }
    for _ in 0..few(rng) {
        let changed = match &b[..] {
            [0x89, b'P', ..] => png(rng, &b),
            [0xFF, 0xD8, ..] => jpeg(rng, &b),
            [b'B', b'M', ..] => bmp(rng, &b),
            [b'R', b'I', ..] => webp(rng, &b),
            _ => None,
        };
        match changed {
            Some(next) => b = next,
            None => damage(rng, &mut b),
        }
    }
    b
}

/// A side that a picture may have: most often one that is quickly decoded.
fn side(rng: &mut Rng) -> u32 {
    match rng.random_range(0..8) {
        0 => number(rng) as u32,
        1 => rng.random_range(1..3000),
        _ => rng.random_range(1..64),
    }
}

// ---- PNG ------------------------------------------------------------------------------------------------------------

type Chunk = ([u8; 4], Vec<u8>);

fn chunks(b: &[u8]) -> Option<Vec<Chunk>> {
    let mut rest = b.get(8..)?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let n = u32::from_be_bytes(rest.first_chunk().copied()?) as usize;
        let kind = rest.get(4..8)?.try_into().ok()?;
        all.push((kind, rest.get(8..8 + n)?.to_vec()));
        rest = rest.get(12 + n..)?;
    }
    Some(all)
}

fn of_chunks(all: &[Chunk]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in all {
        out.extend((data.len() as u32).to_be_bytes());
        let begin = out.len();
        out.extend(kind);
        out.extend(data);
        let sum = crc32fast::hash(&out[begin..]);
        out.extend(sum.to_be_bytes());
    }
    out
}

fn packed(raw: &[u8]) -> Vec<u8> {
    let mut z = ZlibEncoder::new(Vec::new(), Compression::fast());
    z.write_all(raw).expect("memory takes every byte");
    z.finish().expect("memory takes every byte")
}

fn png(rng: &mut Rng, b: &[u8]) -> Option<Vec<u8>> {
    let mut all = chunks(b)?;
    let is = |kind: &[u8; 4], c: &Chunk| c.0 == *kind;
    let head = all.iter().position(|c| is(b"IHDR", c) && c.1.len() == 13)?;
    match rng.random_range(0..8) {
        // Another picture: size, depth, colours, interlacing, and as many bytes as these need.
        0..3 => all = drawn(rng),
        // A header that the bytes do not fit.
        3 => {
            let at = *pick(rng, &[0, 4, 8, 9, 10, 11, 12]);
            match at {
                0 | 4 => all[head].1[at..at + 4].copy_from_slice(&side(rng).to_be_bytes()),
                _ => all[head].1[at] = *pick(rng, &[0, 1, 2, 3, 4, 6, 8, 16, 255]),
            }
        }
        // Filters and pixels below the packing.
        4 => {
            let data: Vec<u8> = all.iter().filter(|c| is(b"IDAT", c)).flat_map(|c| c.1.clone()).collect();
            let mut raw = Vec::new();
            ZlibDecoder::new(&data[..]).take(1 << 22).read_to_end(&mut raw).ok()?;
            damage(rng, &mut raw);
            let first = all.iter().position(|c| is(b"IDAT", c))?;
            all.retain(|c| !is(b"IDAT", c));
            let data = packed(&raw);
            // In pieces of any length, one of them empty.
            let cut = rng.random_range(0..=data.len());
            all.splice(first..first, [&data[..cut], &[], &data[cut..]].map(|d| (*b"IDAT", d.to_vec())));
        }
        5 => {
            let orientation = rng.random_range(0..10);
            let kinds: [(&[u8; 4], Vec<u8>); 7] = [
                (b"eXIf", exif(orientation)),
                (b"gAMA", (number(rng) as u32).to_be_bytes().to_vec()),
                (b"tRNS", (0..rng.random_range(0..300)).map(|_| rng.random()).collect()),
                (b"PLTE", (0..3 * rng.random_range(0..300)).map(|_| rng.random()).collect()),
                (b"acTL", [(number(rng) as u32).to_be_bytes(), 0u32.to_be_bytes()].concat()),
                (b"iCCP", [b"x\0\0".to_vec(), packed(&[0; 4000])].concat()),
                (b"zTXt", [b"x\0\0".to_vec(), packed(&vec![0; 1 << 20])].concat()),
            ];
            let (kind, data) = pick(rng, &kinds).clone();
            let at = rng.random_range(1..=all.len());
            all.insert(at, (*kind, data));
        }
        6 => {
            let at = rng.random_range(0..all.len());
            damage(rng, &mut all[at].1);
        }
        _ => {
            let (at, other) = (rng.random_range(0..all.len()), rng.random_range(0..all.len()));
            match rng.random_range(0..3) {
                0 => drop(all.remove(at)),
                1 => all.insert(other, all[at].clone()),
                _ => all.swap(at, other),
            }
        }
    }
    Some(of_chunks(&all))
}

/// A PNG of noise that nothing is wrong with.
fn drawn(rng: &mut Rng) -> Vec<Chunk> {
    // Colour type, its samples, depths.
    let kinds: [(u8, u64, &[u8]); 5] =
        [(0, 1, &[1, 2, 4, 8, 16]), (2, 3, &[8, 16]), (3, 1, &[1, 2, 4, 8]), (4, 2, &[8, 16]), (6, 4, &[8, 16])];
    let (colour, samples, depths) = *pick(rng, &kinds);
    let depth = *pick(rng, depths);
    let (width, height) = match rng.random_range(0..10) {
        0 => (rng.random_range(1..40_000), 1),
        1 => (1, rng.random_range(1..40_000)),
        _ => (rng.random_range(1..80), rng.random_range(1..80)),
    };
    let interlaced = rng.random_range(0..4) == 0;
    let line = |w: u64| (w * samples * u64::from(depth)).div_ceil(8);
    // First column and row of each of Adam7's passes, and its steps.
    let passes: &[[u64; 4]] = match interlaced {
        true => &[[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]],
        false => &[[0, 0, 1, 1]],
    };
    let mut raw = Vec::new();
    for [x, y, dx, dy] in passes {
        let (w, h) = ((width + dx - 1 - x) / dx, (height + dy - 1 - y) / dy);
        for _ in 0..if w == 0 { 0 } else { h } {
            raw.push(rng.random_range(0..5));
            raw.extend((0..line(w)).map(|_| rng.random::<u8>()));
        }
    }
    let size = [(width as u32).to_be_bytes(), (height as u32).to_be_bytes()].concat();
    let head = [&size[..], &[depth, colour, 0, 0, u8::from(interlaced)]].concat();
    let palette: Vec<u8> = (0..3 << depth.min(8)).map(|_| rng.random()).collect();
    let mut all = vec![(*b"IHDR", head)];
    if colour == 3 {
        all.push((*b"PLTE", palette));
    }
    all.extend([(*b"IDAT", packed(&raw)), (*b"IEND", Vec::new())]);
    all
}

/// An EXIF block of one entry, the orientation.
fn exif(orientation: u16) -> Vec<u8> {
    let mut b = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
    b.extend(orientation.to_be_bytes());
    b.extend([0; 6]);
    b
}

// ---- JPEG -----------------------------------------------------------------------------------------------------------

type Segment = (u8, Vec<u8>);

/// Segments up to the first scan, and the rest.
fn segments(b: &[u8]) -> Option<(Vec<Segment>, &[u8])> {
    let mut rest = b.get(2..)?;
    let mut all = Vec::new();
    loop {
        let (marker, n) = match rest {
            [0xFF, m, a, b, ..] => (*m, usize::from(u16::from_be_bytes([*a, *b]))),
            _ => return None,
        };
        if marker == 0xDA {
            return Some((all, rest));
        }
        all.push((marker, rest.get(4..2 + n)?.to_vec()));
        rest = rest.get(2 + n..)?;
    }
}

fn jpeg(rng: &mut Rng, b: &[u8]) -> Option<Vec<u8>> {
    let (mut all, scan) = segments(b)?;
    let mut scan = scan.to_vec();
    let frame = all.iter().position(|(m, d)| (0xC0..=0xC2).contains(m) && d.len() >= 6)?;
    match rng.random_range(0..8) {
        // A smaller or larger picture: the scan has too much or too little.
        0 => {
            let at = *pick(rng, &[1, 3]);
            let n = if rng.random() { side(rng) as u16 } else { rng.random_range(8..300) };
            all[frame].1[at..at + 2].copy_from_slice(&n.to_be_bytes());
        }
        // Depth, components and how they are sampled.
        1 => {
            let at = *pick(rng, &[0, 5, 7, 8, 10, 11]);
            let n = *pick(rng, &[0, 1, 2, 3, 4, 8, 12, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0xFF]);
            *all[frame].1.get_mut(at)? = n;
        }
        2 => {
            let block = [b"Exif\0\0".to_vec(), exif(rng.random_range(0..10))].concat();
            all.insert(0, (0xE1, block));
        }
        3 => {
            let adobe = [&b"Adobe\0\x64\0\0\0\0"[..], &[*pick(rng, &[0, 1, 2, 255])]].concat();
            let restart = (number(rng) as u16).to_be_bytes().to_vec();
            let comment = vec![0; *pick(rng, &[0, 1, 65_533])];
            let one = pick(rng, &[(0xEE, adobe), (0xDD, restart), (0xFE, comment)]).clone();
            all.insert(rng.random_range(0..=all.len()), one);
        }
        // A table: of quantization, codes, or what else there is.
        4 | 5 => {
            let at = rng.random_range(0..all.len());
            if all[at].1.len() > 20 {
                let place = rng.random_range(0..all[at].1.len());
                all[at].1[place] = rng.random();
            } else {
                damage(rng, &mut all[at].1);
            }
        }
        // A tail cut off, with the mark of an end.
        6 => {
            scan.truncate(rng.random_range(2..=scan.len()));
            scan.extend([0xFF, 0xD9]);
        }
        _ => {
            let from = 14.min(scan.len());
            let mut tail = scan.split_off(from);
            damage(rng, &mut tail);
            scan.extend(tail);
            scan.extend([0xFF, 0xD9]);
        }
    }
    let mut out = vec![0xFF, 0xD8];
    for (marker, data) in all {
        out.extend([0xFF, marker]);
        out.extend((data.len() as u16).wrapping_add(2).to_be_bytes());
        out.extend(data);
    }
    out.extend(scan);
    Some(out)
}

// ---- BMP and WebP ---------------------------------------------------------------------------------------------------

fn bmp(rng: &mut Rng, b: &[u8]) -> Option<Vec<u8>> {
    if b.len() < 54 {
        return None;
    }
    let mut b = b.to_vec();
    let at4 = |b: &mut Vec<u8>, at: usize, n: i32| b[at..at + 4].copy_from_slice(&n.to_le_bytes());
    match rng.random_range(0..4) {
        // Another picture, with as many bytes as it needs; rows from the top if the height is negative.
        0 | 1 => {
            let depth = *pick(rng, &[1u16, 4, 8, 16, 24, 32]);
            let (width, height) = (rng.random_range(1..100i32), rng.random_range(1..100i32));
            let colours: usize = if depth <= 8 { 1 << depth } else { 0 };
            let begin = 54 + 4 * colours;
            let line = (width as usize * usize::from(depth)).div_ceil(32) * 4;
            b.truncate(54);
            b.extend((0..begin - 54 + line * height as usize).map(|_| rng.random::<u8>()));
            let size = b.len() as i32;
            at4(&mut b, 2, size);
            at4(&mut b, 10, begin as i32);
            at4(&mut b, 14, 40);
            at4(&mut b, 18, width);
            at4(&mut b, 22, if rng.random() { height } else { -height });
            b[26..28].copy_from_slice(&1u16.to_le_bytes());
            b[28..30].copy_from_slice(&depth.to_le_bytes());
            at4(&mut b, 30, 0);
            at4(&mut b, 34, 0);
            at4(&mut b, 46, 0);
        }
        2 => {
            let at = *pick(rng, &[2, 10, 14, 18, 22, 30, 34, 46, 50]);
            let n = if rng.random() { number(rng) as i32 } else { rng.random_range(-8..60) };
            at4(&mut b, at, n);
        }
        // Runs: of 8 or 4 bits.
        _ => {
            let depth = *pick(rng, &[8u16, 4]);
            b[28..30].copy_from_slice(&depth.to_le_bytes());
            at4(&mut b, 30, if depth == 8 { 1 } else { 2 });
        }
    }
    Some(b)
}

fn webp(rng: &mut Rng, b: &[u8]) -> Option<Vec<u8>> {
    let kind: [u8; 4] = b.get(12..16)?.try_into().ok()?;
    let n = u32::from_le_bytes(b.get(16..20)?.try_into().ok()?) as usize;
    let mut data = b.get(20..20 + n)?.to_vec();
    let mut chunks: Vec<([u8; 4], Vec<u8>)> = Vec::new();
    match rng.random_range(0..5) {
        // Width and height of 14 bits each, behind a byte of signature.
        0 => {
            let bits: u32 = (side(rng) & 0x3FFF) | (side(rng) & 0x3FFF) << 14 | u32::from(rng.random::<bool>()) << 28;
            data.get_mut(1..5)?.copy_from_slice(&bits.to_le_bytes());
        }
        1 => {
            let mut tail = data.split_off(5.min(data.len()));
            damage(rng, &mut tail);
            data.extend(tail);
        }
        2 => data.truncate(rng.random_range(0..=data.len())),
        // The extended form: flags, the size of the canvas less one, what belongs to them.
        _ => {
            let flags = *pick(rng, &[0u8, 0x10, 0x08, 0x02, 0x20, 0x04, 0xFF]);
            let size = |n: u32| n.wrapping_sub(1).to_le_bytes();
            let (w, h) = if rng.random() { (40, 24) } else { (side(rng), side(rng)) };
            chunks.push((*b"VP8X", [&[flags, 0, 0, 0], &size(w)[..3], &size(h)[..3]].concat()));
            if flags & 0x20 != 0 {
                chunks.push((*b"ICCP", vec![0; 128]));
            }
            if flags & 0x02 != 0 {
                chunks.push((*b"ANIM", vec![0; 6]));
            }
            if flags & 0x08 != 0 {
                let orientation = rng.random_range(0..10);
                chunks.push((*b"EXIF", exif(orientation)));
            }
        }
    }
    // What EXIF says stands after the picture.
    let at = chunks.iter().position(|c| &c.0 == b"EXIF").unwrap_or(chunks.len());
    chunks.insert(at, (kind, data));
    let mut out = b"RIFF\0\0\0\0WEBP".to_vec();
    for (kind, data) in chunks {
        out.extend(kind);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(&data);
        out.resize(out.len() + data.len() % 2, 0);
    }
    let size = out.len() as u32 - 8;
    out[4..8].copy_from_slice(&size.to_le_bytes());
    Some(out)
}
