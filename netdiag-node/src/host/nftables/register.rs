//! The register file of one rule: which bytes hold which field or value.

use super::field::Field;

/// Registers 1 to 4 have 16 bytes, registers 8 to 23 are the same memory in words of 4 (`enum nft_registers`).
const WIDE: u32 = 16;
const WORD: u32 = 4;

#[derive(Debug, Clone)]
pub(super) enum Content {
    Field(Field),
    Masked {
        field: Field,
        mask: Vec<u8>,
    },
    /// One of these values (a map's), never more than a few hundred.
    OneOf(Vec<Vec<u8>>),
    /// Something that is not a field of the packet, in words.
    Computed {
        words: String,
        random: bool,
    },
}

impl Content {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Field(field) => field.name.to_string(),
            Self::Masked { field, mask } => {
                format!("{} & {:#x}", field.name, super::field::host_endian(mask))
            }
            Self::OneOf(_) => "map value".into(),
            Self::Computed { words, .. } => words.clone(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Loaded {
    at: usize,
    bytes: usize,
    pub content: Content,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Registers(Vec<Loaded>);

/// A part of a key: where in the key's bytes it is, and what was loaded there.
pub(super) struct Part<'a> {
    pub start: usize,
    pub bytes: usize,
    pub content: &'a Content,
}

fn byte_of(register: u32) -> usize {
    let at = match register {
        0..=7 => register.saturating_sub(1) * WIDE,
        register => (register - 8).saturating_mul(WORD),
    };
    at as usize
}

impl Registers {
    /// Neighbours in one load follow each other without padding.
    pub(super) fn load(&mut self, register: u32, contents: Vec<(Content, usize)>) {
        let mut at = byte_of(register);
        let bytes: usize = contents.iter().map(|(_, bytes)| bytes).sum();
        self.0.retain(|old| old.at + old.bytes <= at || at + bytes <= old.at);
        for (content, bytes) in contents {
            self.0.push(Loaded { at, bytes, content });
            at += bytes;
        }
    }

    /// What starts exactly at this register.
    pub(super) fn get(&self, register: u32) -> Option<&Loaded> {
        self.0.iter().find(|loaded| loaded.at == byte_of(register))
    }

    /// The parts of a key of `bytes` bytes. Fields of a concatenation start at multiples of four.
    pub(super) fn parts(&self, register: u32, bytes: usize) -> Option<Vec<Part<'_>>> {
        let start = byte_of(register);
        let mut parts = Vec::new();
        let mut at = start;
        while at < start + bytes {
            let found = self.0.iter().find(|loaded| loaded.at == at).or_else(|| {
                at = at.next_multiple_of(WORD as usize);
                self.0.iter().find(|loaded| loaded.at == at)
            });
            if at >= start + bytes {
                break;
            }
            let loaded = found?;
            parts.push(Part { start: at - start, bytes: loaded.bytes, content: &loaded.content });
            at += loaded.bytes.max(1);
        }
        Some(parts)
    }

    /// The possible values of `bytes` bytes at a register, when they are constants.
    pub(super) fn values(&self, register: u32, bytes: usize) -> Option<Vec<&[u8]>> {
        let at = byte_of(register);
        let loaded = self.0.iter().find(|loaded| loaded.at <= at && at + bytes <= loaded.at + loaded.bytes)?;
        let Content::OneOf(values) = &loaded.content else { return None };
        values.iter().map(|value| value.get(at - loaded.at..at - loaded.at + bytes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::Subject;
    use super::*;

    fn field(name: &'static str, bytes: usize) -> (Content, usize) {
        (Content::Field(Field::new(Subject::Number, name, bytes)), bytes)
    }

    #[test]
    fn a_concatenation_skips_its_padding() {
        let mut registers = Registers::default();
        registers.load(1, vec![field("address", 4)]);
        registers.load(9, vec![field("protocol", 1)]);
        registers.load(10, vec![field("port", 2)]);
        let starts: Vec<_> = registers.parts(1, 12).unwrap().iter().map(|part| (part.start, part.bytes)).collect();
        assert_eq!(starts, [(0, 4), (4, 1), (8, 2)]);
    }

    #[test]
    fn a_later_load_replaces_what_it_covers() {
        let mut registers = Registers::default();
        registers.load(1, vec![field("old", 16)]);
        registers.load(9, vec![field("new", 4)]);
        assert!(registers.get(1).is_none());
        assert!(registers.get(9).is_some());
        assert!(registers.parts(1, 8).is_none());
    }

    #[test]
    fn map_values_are_read_in_pieces() {
        let mut registers = Registers::default();
        let value = vec![10, 0, 0, 1, 0x1f, 0x90, 0, 0];
        registers.load(1, vec![(Content::OneOf(vec![value]), 8)]);
        assert_eq!(registers.values(9, 2), Some(vec![&[0x1f, 0x90][..]]));
        assert_eq!(registers.values(10, 2), None);
    }
}
