//! The kernel's own type information: where a member lies, what an enumerator is called, what a tracepoint passes.
//!
//! Format: Documentation/bpf/btf.rst, Linux 6.18. Only what the loader asks for is decoded; every offset is checked, so a
//! damaged file gives an error and never a panic.

/// Why a BTF file is of no use. Not worth a retry: the kernel's BTF does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("{bytes} bytes are too short for a BTF header")]
    Short { bytes: usize },
    #[error("the magic number is {found:#06x}, not 0xeb9f")]
    Magic { found: u16 },
    #[error("the {section} section ends at byte {end}, the file at {bytes}")]
    Section { section: &'static str, end: u64, bytes: usize },
    #[error("type {id} is of kind {kind}, which this version does not know")]
    Kind { id: usize, kind: u32 },
    #[error("type {id} ends behind the type section")]
    Truncated { id: usize },
}

/// A member found by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// From the start of the outermost structure, in bytes.
    pub offset: u32,
    /// In bytes; 0 when the type has no size of its own (functions, void).
    pub size: u32,
}

/// Parsed BTF: an index over the bytes, nothing copied.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Byte offset of each type in `types`; index 0 is void.
    starts: Vec<u32>,
}

const HEADER_BYTES: usize = 24;
const HEADER_BYTES_U32: u32 = 24;
const MAGIC: u16 = 0xeb9f;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Typedefs and qualifiers in a row. Real chains have at most 5; a loop in a damaged file must end.
const MAX_CHAIN: usize = 32;

/// `struct btf_type`: 12 bytes, then what its kind adds.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    /// Members, enumerators or parameters behind it.
    count: usize,
    /// Member offsets hold a bit-field's width in their upper byte; an enum is signed.
    flag: bool,
    /// By kind: the id of the type it points to, or its own size in bytes.
    target: u32,
}

pub fn parse(bytes: &[u8]) -> Result<Btf<'_>, BtfError> {
    let (types, strings) = sections(bytes)?;
    let mut starts = vec![0];
    let mut at = 0;
    while at < types.len() {
        let id = starts.len();
        let found = type_at(types, at).ok_or(BtfError::Truncated { id })?;
        let extra = match found.kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => 12 * found.count,
            ENUM | FUNC_PROTO => 8 * found.count,
            // Forward declarations, functions, floats and everything that only points at another type.
            PTR | 7 | TYPEDEF..=RESTRICT | 12 | 16 | TYPE_TAG => 0,
            kind => return Err(BtfError::Kind { id, kind }),
        };
        let end = at + 12 + extra;
        if end > types.len() {
            return Err(BtfError::Truncated { id });
        }
        starts.push(u32::try_from(at).map_err(|_| BtfError::Truncated { id })?);
        at = end;
    }
    Ok(Btf { types, strings, starts })
}

/// A module's BTF continues the numbers and the strings of the kernel's: both together as one file.
pub fn joined(kernel: &[u8], module: &[u8]) -> Result<Vec<u8>, BtfError> {
    let (kernel_types, kernel_strings) = sections(kernel)?;
    let (module_types, module_strings) = sections(module)?;
    let (types, strings) = ([kernel_types, module_types].concat(), [kernel_strings, module_strings].concat());
    let length = |section: &[u8]| u32::try_from(section.len()).unwrap_or(u32::MAX);
    let mut both = kernel[..4].to_vec();
    for word in [HEADER_BYTES_U32, 0, length(&types), length(&types), length(&strings)] {
        both.extend(word.to_le_bytes());
    }
    both.extend(types);
    both.extend(strings);
    Ok(both)
}

/// The sections of types and of strings.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(BtfError::Short { bytes: bytes.len() })?;
    let magic = u16::from_le_bytes([header[0], header[1]]);
    if magic != MAGIC {
        return Err(BtfError::Magic { found: magic });
    }
    let field = |at: usize| u32_at(header, at).map_or(0, u64::from);
    let base = field(4);
    let section = |section, offset: u64, length: u64| {
        let (start, end) = (base + offset, base + offset + length);
        // Both fit: they are at most three times u32::MAX, and `get` refuses what the file does not have.
        usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or(BtfError::Section { section, end, bytes: bytes.len() })
    };
    Ok((section("type", field(8), field(12))?, section("string", field(16), field(20))?))
}

impl<'a> Btf<'a> {
    /// The member of `structure` at `path` (`ns.inum`), looking through anonymous structures and unions. None when there
    /// is none, or when it is a bit-field.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        let mut holder = self.types_named(structure).find(|found| found.kind == STRUCT && found.count > 0)?;
        let mut offset = 0;
        let mut last = None;
        for name in path.split('.') {
            if let Some(next) = last {
                holder = self.resolve(next)?;
            }
            let (inner, type_id) = self.find_member(&holder, name, 0)?;
            offset += inner;
            last = Some(type_id);
        }
        Some(Member { offset, size: self.size_of(last?, 0) })
    }

    /// Enumerators of the enum called `name`, in order.
    pub fn enumerators(&self, name: &str) -> Vec<(&'a str, i64)> {
        let Some(found) = self.types_named(name).find(|found| matches!(found.kind, ENUM | ENUM64)) else {
            return Vec::new();
        };
        let width = if found.kind == ENUM { 8 } else { 12 };
        (0..found.count)
            .filter_map(|n| {
                let at = found.at + 12 + n * width;
                let low = u32_at(self.types, at + 4)?;
                let value = match (found.kind, found.flag) {
                    (ENUM, true) => i64::from(low.cast_signed()),
                    (ENUM, false) => i64::from(low),
                    _ => (i64::from(u32_at(self.types, at + 8)?) << 32) | i64::from(low),
                };
                Some((self.string(u32_at(self.types, at)?), value))
            })
            .collect()
    }

    /// Names of the types that tracepoint `name` passes to its programs, empty for an unnamed type (a pointer to void).
    pub fn tracepoint_arguments(&self, name: &str) -> Option<Vec<&'a str>> {
        let typedef = self.types_named(&format!("btf_trace_{name}")).find(|found| found.kind == TYPEDEF)?;
        let pointer = self.resolve(typedef.target)?;
        let prototype = self.resolve(pointer.target)?;
        if pointer.kind != PTR || prototype.kind != FUNC_PROTO {
            return None;
        }
        // The first parameter is the tracepoint's own data pointer, which programs do not see.
        (1..prototype.count)
            .map(|n| {
                let parameter = u32_at(self.types, prototype.at + 12 + n * 8 + 4)?;
                Some(self.resolve(parameter).map_or("", |mut found| {
                    if found.kind == PTR {
                        match self.resolve(found.target) {
                            Some(target) => found = target,
                            None => return "",
                        }
                    }
                    self.string(found.name)
                }))
            })
            .collect()
    }

    fn types_named<'b>(&'b self, name: &'b str) -> impl Iterator<Item = Type> + 'b {
        self.starts.iter().skip(1).filter_map(move |start| {
            let found = type_at(self.types, *start as usize)?;
            (self.string(found.name) == name).then_some(found)
        })
    }

    /// The type with this id, behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_CHAIN {
            if id == 0 {
                return None;
            }
            let found = type_at(self.types, *self.starts.get(id as usize)? as usize)?;
            if !matches!(found.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some(found);
            }
            id = found.target;
        }
        None
    }

    /// Offset in bytes and type id of `name` in `holder`.
    fn find_member(&self, holder: &Type, name: &str, depth: usize) -> Option<(u32, u32)> {
        if depth > MAX_CHAIN || !matches!(holder.kind, STRUCT | UNION) {
            return None;
        }
        for n in 0..holder.count {
            let at = holder.at + 12 + n * 12;
            let (member, type_id, raw) =
                (u32_at(self.types, at)?, u32_at(self.types, at + 4)?, u32_at(self.types, at + 8)?);
            let (bits, width) = if holder.flag { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            if member == 0 {
                let inner = self.resolve(type_id).and_then(|inner| self.find_member(&inner, name, depth + 1));
                if let Some((offset, found)) = inner {
                    return Some((bits / 8 + offset, found));
                }
            } else if self.string(member) == name {
                return (width == 0 && bits.is_multiple_of(8)).then_some((bits / 8, type_id));
            }
        }
        None
    }

    fn size_of(&self, id: u32, depth: usize) -> u32 {
        let Some(found) = self.resolve(id) else { return 0 };
        match found.kind {
            PTR => 8,
            INT | STRUCT | UNION | ENUM | ENUM64 => found.target,
            ARRAY if depth < MAX_CHAIN => {
                let element = u32_at(self.types, found.at + 12).unwrap_or(0);
                let count = u32_at(self.types, found.at + 20).unwrap_or(0);
                self.size_of(element, depth + 1).saturating_mul(count)
            }
            _ => 0,
        }
    }

    /// The string at `offset`; empty when it is no valid string.
    fn string(&self, offset: u32) -> &'a str {
        let tail = self.strings.get(offset as usize..).unwrap_or(&[]);
        let end = tail.iter().position(|byte| *byte == 0).unwrap_or(0);
        std::str::from_utf8(&tail[..end]).unwrap_or("")
    }
}

fn type_at(types: &[u8], at: usize) -> Option<Type> {
    let info = u32_at(types, at + 4)?;
    Some(Type {
        at,
        name: u32_at(types, at)?,
        kind: (info >> 24) & 0x1f,
        count: (info & 0xffff) as usize,
        flag: info >> 31 == 1,
        target: u32_at(types, at + 8)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running_kernel() -> Option<Vec<u8>> {
        crate::host::kernel::btf().map_err(|error| eprintln!("netdiag-skip: btf: {error}")).ok()
    }

    /// Every question the loader asks; what a damaged file answers does not matter, only that it does.
    fn ask_everything(btf: &Btf<'_>) {
        btf.member("sk_buff", "dev");
        btf.member("net", "ns.inum");
        btf.enumerators("skb_drop_reason");
        btf.tracepoint_arguments("kfree_skb");
    }

    #[test]
    fn this_kernel_has_what_the_loader_asks_for() {
        let Some(bytes) = running_kernel() else { return };
        let btf = parse(&bytes).unwrap();
        // Anonymous structures and unions are looked through.
        assert_eq!(btf.member("sk_buff", "dev"), Some(Member { offset: 16, size: 8 }));
        assert_eq!(btf.member("sk_buff", "len").unwrap().size, 4);
        assert_eq!(btf.member("sk_buff", "protocol").unwrap().size, 2);
        let (ns, inum) = (btf.member("net", "ns").unwrap(), btf.member("ns_common", "inum").unwrap());
        assert_eq!(btf.member("net", "ns.inum").unwrap().offset, ns.offset + inum.offset);
        // An array's size is its elements'.
        assert_eq!(btf.member("net_device", "name").unwrap().size, 16);
        assert_eq!(btf.member("sk_buff", "cloned"), None, "a bit-field has no offset in bytes");
        assert_eq!(btf.member("sk_buff", "no_such_member"), None);
        assert_eq!(btf.member("no_such_struct", "len"), None);
        assert_eq!(btf.tracepoint_arguments("kfree_skb").unwrap()[0], "sk_buff");
        assert_eq!(btf.tracepoint_arguments("no_such_tracepoint"), None);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let Some(bytes) = running_kernel() else { return };
        for length in (0..bytes.len()).step_by(bytes.len() / 64).chain(0..64) {
            assert!(parse(&bytes[..length]).is_err(), "{length} of {} bytes were accepted", bytes.len());
        }
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let Some(mut bytes) = running_kernel() else { return };
        // A small generator is enough: the point is variety, and the same bytes each time.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..24 {
            for _ in 0..4096 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state % bytes.len() as u64).unwrap().max(HEADER_BYTES);
                bytes[at] ^= state.to_le_bytes()[4];
            }
            if let Ok(btf) = parse(&bytes) {
                ask_everything(&btf);
            }
        }
    }

    /// One structure after the other, each a member of the one before, the last pointing back to the first.
    #[test]
    fn a_type_that_contains_itself_ends() {
        let mut types = Vec::new();
        for next in [2_u32, 1] {
            for word in [1, (STRUCT << 24) | 1, 8, 0, next, 0] {
                types.extend_from_slice(&word.to_le_bytes());
            }
        }
        let strings = b"\0loop\0";
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        let length = u32::try_from(types.len()).unwrap();
        for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&types);
        bytes.extend_from_slice(strings);
        let btf = parse(&bytes).unwrap();
        assert_eq!(btf.member("loop", "anything"), None);
    }

    /// The kernel's BTF as its own module: the second half of the types repeats the first under other numbers.
    #[test]
    fn a_module_continues_the_kernels_types() {
        let strings = b"\0inner\0outer\0";
        let file = |types: &[u32], strings: &[u8]| {
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            let length = u32::try_from(types.len() * 4).unwrap();
            for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()].iter().chain(types) {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(strings);
            bytes
        };
        // Type 1 of the kernel: an integer of 4 bytes. Type 2, the module's first: a structure with a member of type 1.
        let kernel = file(&[1, INT << 24, 4, 32], strings);
        let module = file(&[7, (STRUCT << 24) | 1, 12, 13, 1, 64], b"member\0");
        assert!(parse(&module).is_ok_and(|alone| alone.member("outer", "member").is_none()));
        let both = joined(&kernel, &module).unwrap();
        assert_eq!(parse(&both).unwrap().member("outer", "member"), Some(Member { offset: 8, size: 4 }));
        assert!(joined(&kernel, &module[..20]).is_err());
    }

    #[test]
    fn what_is_no_btf_is_named() {
        assert_eq!(parse(&[]).err(), Some(BtfError::Short { bytes: 0 }));
        assert_eq!(parse(&[0x7f; 24]).err(), Some(BtfError::Magic { found: 0x7f7f }));
    }
}
