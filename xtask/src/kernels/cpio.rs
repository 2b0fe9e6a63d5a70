//! Archives that the kernel unpacks as its first file system: cpio, format "newc".
//!
//! Documentation/driver-api/early-userspace/buffer-format.rst, Linux 6.18

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Writes an archive. Folders come by themselves before what lies in them.
pub(super) struct Archive<W> {
    to: W,
    /// No two entries may share a number, or the kernel takes them for one file.
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, inode: 0, folders: BTreeSet::new() }
    }

    /// A file that may be read and run by everybody; `path` is absolute in the guest.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, PROGRAM, content)
    }

    /// A copy of a file of this machine.
    pub(super) fn copy(&mut self, path: &str, source: &Path) -> io::Result<()> {
        let content = std::fs::read(source)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", source.display())))?;
        self.file(path, &content)
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, LINK, target.as_bytes())
    }

    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.parents(&format!("{path}/"))
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("/TRAILER!!!", 0, b"")?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        for end in ends {
            if self.folders.insert(path[..end].to_owned()) {
                self.entry(&path[..end], FOLDER, b"")?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::other(format!("{path} is too large")));
        self.inode += 1;
        // Owner and group, links, time; after the size four numbers of devices; after the name's length a checksum, unused.
        write!(self.to, "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}", self.inode, 0, 0, 1, 0)?;
        write!(self.to, "{:08x}{:032x}", length(content.len())?, 0)?;
        write!(self.to, "{:08x}{:08x}{name}\0", length(name.len() + 1)?, 0)?;
        self.pad(HEADER_BYTES + name.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

const HEADER_BYTES: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_the_kernel_documents() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", b"hello").unwrap();
        archive.link("/a/d", "b/c").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        while !rest.is_empty() {
            let number = |n: usize| {
                let digits = std::str::from_utf8(&rest[6 + n * 8..14 + n * 8]).unwrap();
                usize::try_from(u32::from_str_radix(digits, 16).unwrap()).unwrap()
            };
            assert_eq!(&rest[..6], b"070701");
            let (mode, size, name_length) = (number(1), number(6), number(11));
            let name = String::from_utf8(rest[HEADER_BYTES..HEADER_BYTES + name_length - 1].to_vec()).unwrap();
            let start = (HEADER_BYTES + name_length).next_multiple_of(4);
            found.push((name, mode, String::from_utf8(rest[start..start + size].to_vec()).unwrap()));
            rest = &rest[(start + size).next_multiple_of(4)..];
        }
        let expected = [
            ("a", FOLDER, ""),
            ("a/b", FOLDER, ""),
            ("a/b/c", PROGRAM, "hello"),
            ("a/d", LINK, "b/c"),
            ("TRAILER!!!", 0, ""),
        ];
        let expected = expected.map(|(name, mode, text)| (name.to_owned(), mode as usize, text.to_owned()));
        assert_eq!(found, expected);
    }
}
