//! Recognises files that people give by mistake, to say what they are instead of what is wrong with them.

type Verdict = (&'static str, &'static str);

const MAGIC: &[(usize, &[u8], Verdict)] = &[
    (
        0,
        b"PK\x03\x04",
        (
            "a ZIP archive (a PyTorch checkpoint, a NumPy .npz or a packed model)",
            "export the network to ONNX with torch.onnx.export, or unpack the archive",
        ),
    ),
    (0, b"\x1f\x8b", ("a gzip archive", "unpack it first")),
    (0, b"\x89HDF\r\n\x1a\n", ("an HDF5 file (Keras weights)", "convert the network to ONNX with tf2onnx")),
    (4, b"TFL3", ("a TensorFlow Lite model", "convert the original network to ONNX")),
    (4, b"ORTM", ("an onnxruntime .ort model", "give the .onnx file it was made from")),
    (0, b"\x93NUMPY", ("a NumPy array", "give the model; data is an option of its own")),
    (0, b"\x89PNG\r\n\x1a\n", ("a PNG image", "give the model; images are an option of their own")),
    (0, b"\xff\xd8\xff", ("a JPEG image", "give the model; images are an option of their own")),
];

/// What a file is, if it is recognisably no ONNX model, and what to do about it.
pub(super) fn foreign(bytes: &[u8]) -> Option<Verdict> {
    if let Some((.., verdict)) = MAGIC.iter().find(|(at, m, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(m))) {
        return Some(*verdict);
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Some(("a Git LFS pointer, not the file itself", "fetch the file with `git lfs pull`"));
    }
    // A model begins with a binary key; text of any length has none of the control bytes that every model has.
    let head = &bytes[..bytes.len().min(512)];
    let text = match std::str::from_utf8(head) {
        Ok(s) => Some(s),
        // The cut may go through a character.
        Err(e) if e.error_len().is_none() && bytes.len() > head.len() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()
        }
        Err(_) => None,
    }?;
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return None;
    }
    let start = text.trim_start();
    Some(if start.starts_with("<!") || start.starts_with("<html") {
        ("a web page", "the download probably failed: get the file itself, not the page about it")
    } else {
        ("a text file", "give the binary .onnx file that the exporter wrote")
    })
}
