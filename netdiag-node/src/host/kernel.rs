//! What the running kernel says about itself: its types (BTF) and its symbols.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::ReadError;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const SYMBOLS: &str = "/proc/kallsyms";

/// More than any kernel's BTF (6 MB here), less than what hurts.
const MAX_BTF_BYTES: u64 = 64 << 20;

/// Raw BTF of the kernel, present with `CONFIG_DEBUG_INFO_BTF` (Linux 5.4).
pub(crate) fn btf() -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    open(BTF)?
        .take(MAX_BTF_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::File { path: BTF.into(), source })?;
    Ok(bytes)
}

/// Symbols of the kernel and its modules; all addresses are 0 without `CAP_SYSLOG`.
pub(crate) fn symbols() -> Result<BufReader<File>, ReadError> {
    Ok(BufReader::with_capacity(64 << 10, open(SYMBOLS)?))
}

#[expect(clippy::disallowed_methods, reason = "host/ is the door to files")]
fn open(path: &str) -> Result<File, ReadError> {
    File::open(Path::new(path)).map_err(|source| ReadError::File { path: path.into(), source })
}
