//! Makes the type names of an object ones that the kernel accepts.
//!
//! bpf-linker 0.10 spells the generics in struct names as identifiers and leaves those of unions, such as the standard
//! library's `MaybeUninit<u8>`, as they are. The kernel then refuses the whole BTF section (`Invalid name`,
//! kernel/bpf/btf.c `btf_name_valid_identifier`), and with it every map that it describes.

use object::{Object, ObjectSection};

/// struct btf_header, include/uapi/linux/btf.h.
const MAGIC: u16 = 0xeb9f;

/// Why an object could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub(crate) &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the object is malformed: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Replaces, in place, every byte of a type's name that no identifier may have by `_`. Returns how many names changed.
///
/// # Errors
///
/// The object is no ELF file, or its `.BTF` section does not keep to its own lengths.
pub fn mend_names(elf: &mut [u8]) -> Result<usize, Malformed> {
    let range = {
        let file = object::File::parse(&*elf).map_err(|_| Malformed("not an ELF file"))?;
        let section = file.section_by_name(".BTF").ok_or(Malformed("no .BTF section"))?;
        section.file_range().ok_or(Malformed("an empty .BTF section"))?
    };
    let start = usize::try_from(range.0).map_err(|_| Malformed("too large"))?;
    let length = usize::try_from(range.1).map_err(|_| Malformed("too large"))?;
    let btf = elf
        .get_mut(start..start.saturating_add(length))
        .ok_or(Malformed("a section outside the file"))?;
    let names = type_names(btf)?;
    let mut mended = 0;
    for at in names {
        let name = btf.get_mut(at..).ok_or(Malformed("a name outside the strings"))?;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Malformed("a name without an end"))?;
        let bad = name[..end]
            .iter_mut()
            .filter(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')));
        mended += usize::from(bad.map(|byte| *byte = b'_').count() > 0);
    }
    Ok(mended)
}

/// Offsets, from the section's start, of the names of structs, unions, enums and forward declarations: the kinds whose
/// names the linker makes from Rust's paths.
fn type_names(btf: &[u8]) -> Result<Vec<usize>, Malformed> {
    let header = Words(btf);
    if header.half(0)? != MAGIC {
        return Err(Malformed("no header of this byte order"));
    }
    let header_length = header.word(4)?;
    let (types_at, types_length) = (header_length + header.word(8)?, header.word(12)?);
    let strings_at = header_length + header.word(16)?;
    if btf.len() < types_at + types_length {
        return Err(Malformed("cut short"));
    }
    let mut names = Vec::new();
    let mut at = types_at;
    while at < types_at + types_length {
        let (name, info) = (header.word(at)?, header.word(at + 4)?);
        let (kind, members) = ((info >> 24) & 0x1f, info & 0xffff);
        // Bytes after the common 12, by BTF_KIND_*.
        let tail = match kind {
            1 | 14 | 17 => 4,
            2 | 7..=12 | 16 | 18 => 0,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * members,
            6 | 13 => 8 * members,
            _ => return Err(Malformed("an unknown kind of type")),
        };
        if matches!(kind, 4 | 5 | 6 | 7 | 19) && name != 0 {
            names.push(strings_at + name);
        }
        at += 12 + tail;
    }
    Ok(names)
}

/// Little-endian reads: the object is built for the machine that builds it, and cross-endian builds are not offered.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn half(&self, at: usize) -> Result<u16, Malformed> {
        self.0
            .get(at..at + 2)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_ne_bytes)
            .ok_or(Malformed("cut short"))
    }

    fn word(&self, at: usize) -> Result<usize, Malformed> {
        let word = self
            .0
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_ne_bytes);
        word.and_then(|word| usize::try_from(word).ok())
            .ok_or(Malformed("cut short"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with one union called `A<b>`, one int called `u8`, and a string that is no type's name.
    fn section() -> Vec<u8> {
        let strings = b"\0A<b>\0u8\0a < b\0";
        let types: [u32; 7] = [1, 5 << 24, 0, 6, 1 << 24, 1, 8];
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, 28, 28, u32::try_from(strings.len()).unwrap()] {
            btf.extend(u32::to_ne_bytes(word));
        }
        btf.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        btf.extend(strings);
        btf
    }

    #[test]
    fn only_names_of_aggregates_are_found() {
        assert_eq!(type_names(&section()), Ok(vec![24 + 28 + 1]));
    }

    #[test]
    fn a_section_that_is_cut_short_is_an_error_and_no_panic() {
        let mut whole = section();
        for length in 0..24 + 28 {
            assert!(type_names(&whole[..length]).is_err(), "{length}");
        }
        assert!(mend_names(&mut whole).is_err());
    }
}
