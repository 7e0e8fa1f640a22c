//! What a picture's file holds beside the picture: colour profiles, texts, thumbnails. None of it changes the pixels that are
//! read here, and decoders unpack or allocate it at the size that the file claims.

use std::borrow::Cow;
use std::io::{self, Read, Seek, SeekFrom};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The file without what no pixel needs, as far as its format can compress or announce that; the orientation stays.
///
/// # Errors
/// If a part claims to be larger than the file.
pub(super) fn without_extras(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if bytes.starts_with(PNG) {
        return Ok(png(bytes));
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        webp(bytes)?;
    }
    // In JPEG a part has at most 64 kB and is stored as it is, and BMP has none.
    Ok(Cow::Borrowed(bytes))
}

/// A profile of a few kilobytes may unpack to gigabytes.
fn png(bytes: &[u8]) -> Cow<'_, [u8]> {
    // Transparency and orientation; the capital letter of others says that pixels need them.
    let needed = |kind: &[u8]| kind[0].is_ascii_uppercase() || kind == b"tRNS" || kind == b"eXIf";
    let mut kept = PNG.to_vec();
    let mut at = PNG.len();
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        // Length, kind and checksum.
        let Some(end) = length.checked_add(at + 12).filter(|end| *end <= bytes.len()) else { break };
        if needed(&head[4..]) {
            kept.extend_from_slice(&bytes[at..end]);
        }
        at = end;
    }
    if kept.len() == at { Cow::Borrowed(bytes) } else { [kept, bytes[at..].to_vec()].concat().into() }
}

/// What a decoder needs of a PNG to tell its size: all up to its pixels but what could be large.
pub(super) fn png_head(from: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
    let mut kept = vec![0; PNG.len()];
    from.read_exact(&mut kept)?;
    let mut head = [0; 8];
    while from.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if &head[4..] == b"IDAT" {
            kept.extend_from_slice(&head);
            // A beginning: whoever asks for the size reads no further.
            from.by_ref().take(SMALL).read_to_end(&mut kept)?;
            break;
        }
        if head[4].is_ascii_uppercase() || &head[4..] == b"tRNS" {
            kept.extend_from_slice(&head);
            // With the checksum. None of them is longer than a palette; one that is, is told by the decoder.
            from.by_ref().take(u64::from(length).min(SMALL) + 4).read_to_end(&mut kept)?;
        } else {
            from.seek(SeekFrom::Current(i64::from(length) + 4))?;
        }
    }
    Ok(kept)
}

/// Bytes of a part of a PNG that is no pixels: a palette has 768.
const SMALL: u64 = 1 << 12;

pub(super) fn is_png(begin: &[u8]) -> bool {
    begin.starts_with(&PNG[..2])
}

fn webp(bytes: &[u8]) -> Result<(), String> {
    let mut at = 12;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > bytes.len() - at - 8 {
            let kind = String::from_utf8_lossy(&head[..4]).into_owned();
            return Err(format!(
                "its part {kind:?} is to have {length} bytes, which the file has not; it is cut off or damaged"
            ));
        }
        at += 8 + length + length % 2;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A part of a PNG, with its checksum.
    pub(in super::super) fn part(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut h = crc32fast::Hasher::new();
        h.update(kind);
        h.update(data);
        [&(data.len() as u32).to_be_bytes()[..], kind, data, &h.finalize().to_be_bytes()].concat()
    }

    #[test]
    fn pixels_and_their_orientation_stay() {
        let kept = [
            PNG.to_vec(),
            part(b"IHDR", &[0; 13]),
            part(b"tRNS", b"t"),
            part(b"eXIf", b"e"),
            part(b"IDAT", b"x"),
            part(b"IEND", b""),
        ];
        assert!(matches!(without_extras(&kept.concat()), Ok(Cow::Borrowed(b)) if b == kept.concat()));
        let mut more = kept.to_vec();
        for kind in [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"gAMA"] {
            more.insert(2, part(kind, &[7; 100]));
        }
        assert_eq!(without_extras(&more.concat()).unwrap(), kept.concat());
        let head = png_head(&mut io::Cursor::new(more.concat())).unwrap();
        let sized = [&kept[..3], &kept[4..]].concat().concat();
        assert_eq!(head, sized[..head.len()], "all up to the pixels but the profile, the texts and the orientation");
        assert!(head.len() > sized.len() - 20);
        // What is cut off is for the decoder to tell.
        let cut = &more.concat()[..more.concat().len() - 20];
        assert!(without_extras(cut).unwrap().ends_with(&cut[cut.len() - 4..]));
    }

    #[test]
    fn parts_that_claim_more_than_the_file_are_refused() {
        let file =
            |length: u32| [b"RIFF\0\0\0\0WEBPVP8X\x02\0\0\0abEXIF", &length.to_le_bytes()[..], b"abc\0"].concat();
        assert!(without_extras(&file(3)).is_ok());
        let e = without_extras(&file(u32::MAX - 9)).unwrap_err();
        assert!(e.contains("\"EXIF\"") && e.contains("4294967286 bytes"), "{e}");
    }
}
