//! Shared libraries that a process has mapped, from `/proc/PID/maps`.

use std::path::{Path, PathBuf};

use super::{ReadError, file};

/// A large program has some thousands of mappings, of a hundred bytes each.
const MAPS_BYTES: u64 = 4 * 1024 * 1024;

/// A library that can be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Library {
    /// glibc or musl.
    Libc,
    /// OpenSSL's libssl.
    Ssl,
}

/// A file mapped for execution. Two paths with one device and inode are one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    pub library: Library,
    /// `fd:00`.
    pub device: String,
    pub inode: u64,
    /// In the process's own mount namespace.
    pub path: PathBuf,
}

pub fn read(proc: &Path, pid: u32) -> Result<Vec<Mapped>, ReadError> {
    Ok(parse(&file::text(&proc.join(format!("{pid}/maps")), MAPS_BYTES)?))
}

/// `START-END r-xp OFFSET DEVICE INODE PATH`. A file that was replaced since cannot be opened by its path.
fn parse(text: &str) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(6, ' ');
        let (Some(_), Some(rights), Some(_), Some(device), Some(inode), Some(path)) =
            (words.next(), words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let path = path.trim_start();
        let Some(library) = library(path) else { continue };
        let Ok(inode) = inode.parse() else { continue };
        if rights.contains('x') && !found.iter().any(|known| (known.device.as_str(), known.inode) == (device, inode)) {
            found.push(Mapped { library, device: device.to_owned(), inode, path: PathBuf::from(path) });
        }
    }
    found
}

fn library(path: &str) -> Option<Library> {
    let (_, name) = path.rsplit_once('/')?;
    if name.ends_with(" (deleted)") {
        None
    } else if name.starts_with("libc.so.") || name.starts_with("libc-2.") || name.starts_with("ld-musl-") {
        Some(Library::Libc)
    } else if name.starts_with("libssl.so") {
        Some(Library::Ssl)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_is_found_once_and_others_are_not() {
        let text = "7f1000-7f2000 r--p 00000000 fd:00 77                         /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f2000-7f3000 r-xp 00001000 fd:00 77                         /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f3000-7f4000 r-xp 00001000 fd:00 77                         /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f4000-7f5000 r-xp 00001000 00:2e 9                          /opt/my app/libssl.so.1.1\n\
                    7f5000-7f6000 r-xp 00001000 00:2e 10                         /usr/lib/libssl3.so\n\
                    7f6000-7f7000 r-xp 00001000 00:2e 11                         /lib/libssl.so.3 (deleted)\n\
                    7f7000-7f8000 rw-p 00000000 00:00 0 \n";
        let found = parse(text);
        let told: Vec<_> = found.iter().map(|mapped| (mapped.library, mapped.inode)).collect();
        assert_eq!(told, [(Library::Libc, 77), (Library::Ssl, 9)]);
        assert_eq!(found[1].path, Path::new("/opt/my app/libssl.so.1.1"));
        assert!(parse("\n x\n").is_empty());
    }
}
