//! What the running kernel says about itself: its types (BTF) and its symbols.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{ReadError, file};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const SYMBOLS: &str = "/proc/kallsyms";

/// More than any kernel's BTF (6 MB here), less than what hurts.
const MAX_BTF_BYTES: u64 = 64 << 20;

/// Raw BTF of the kernel, present with `CONFIG_DEBUG_INFO_BTF` (Linux 5.4).
pub(crate) fn btf() -> Result<Vec<u8>, ReadError> {
    read(Path::new(BTF))
}

/// Raw BTF of a loaded module, which continues the kernel's own (Linux 5.11).
pub(crate) fn module_btf(module: &str) -> Result<Vec<u8>, ReadError> {
    read(&Path::new("/sys/kernel/btf").join(module))
}

/// The fields of a tracepoint's event, where tracefs is mounted.
pub(crate) fn event_format(event: &str) -> Result<String, ReadError> {
    const FORMAT_BYTES: u64 = 64 << 10;
    let below = |root: &str| file::text(&Path::new(root).join("events").join(event).join("format"), FORMAT_BYTES);
    below("/sys/kernel/tracing").or_else(|_| below("/sys/kernel/debug/tracing"))
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    file::open(path)?
        .take(MAX_BTF_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::File { path: path.into(), source })?;
    Ok(bytes)
}

/// Symbols of the kernel and its modules; all addresses are 0 without `CAP_SYSLOG`.
pub(crate) fn symbols() -> Result<BufReader<File>, ReadError> {
    Ok(BufReader::with_capacity(64 << 10, file::open(Path::new(SYMBOLS))?))
}
