//! Bounded reads of small text files: /proc has files that grow with the machine.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::ReadError;

/// The whole file as text. More than `limit` bytes is an error, never a silently shortened text.
pub(crate) fn text(path: &Path, limit: u64) -> Result<String, ReadError> {
    let mut file = open(path)?;
    bounded(&mut file, path, limit)
}

/// `None` when there is no such file: for files whose absence is an answer.
pub(crate) fn text_if_there(path: &Path, limit: u64) -> Result<Option<String>, ReadError> {
    match text(path, limit) {
        Ok(text) => Ok(Some(text)),
        Err(ReadError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// As [`text_if_there`], of a file that is looked for without leaving `root`.
pub(crate) fn text_below(root: &Path, path: &str, limit: u64) -> Result<Option<String>, ReadError> {
    match open_below(root, path).and_then(|mut file| bounded(&mut file, &shown(root, path), limit)) {
        Ok(text) => Ok(Some(text)),
        Err(ReadError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// As [`names`], of a directory that is looked for without leaving `root`. None when there is none.
pub(crate) fn names_below(root: &Path, path: &str, limit: usize) -> Result<Option<Vec<String>>, ReadError> {
    match below(root, path, OFlag::O_DIRECTORY) {
        Ok(folder) => names(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())), limit).map(Some),
        Err(ReadError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file without leaving `root`: a container may make it a link to anywhere, or a pipe that blocks its reader.
pub(crate) fn open_below(root: &Path, path: &str) -> Result<File, ReadError> {
    let failed = |source: io::Error| ReadError::File { path: shown(root, path), source };
    let file = below(root, path, OFlag::O_NONBLOCK)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "not a regular file")));
    }
    Ok(file)
}

fn below(root: &Path, path: &str, flags: OFlag) -> Result<File, ReadError> {
    let folder = open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = openat2(&folder, path, how);
    Ok(File::from(opened.map_err(|errno| ReadError::File { path: shown(root, path), source: errno.into() })?))
}

fn shown(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Names of a directory's entries, at most `limit`, in no order.
pub(crate) fn names(path: &Path, limit: usize) -> Result<Vec<String>, ReadError> {
    let entries = std::fs::read_dir(path).map_err(|source| ReadError::File { path: path.to_owned(), source })?;
    Ok(entries.take(limit).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

#[expect(clippy::disallowed_methods, reason = "host/ is the door to files")]
pub(crate) fn open(path: &Path) -> Result<File, ReadError> {
    File::open(path).map_err(|source| ReadError::File { path: path.to_owned(), source })
}

pub(crate) fn bounded(file: &mut File, path: &Path, limit: u64) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::File { path: PathBuf::from(path), source })?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::Malformed {
            what: path.display().to_string(),
            why: format!("longer than {limit} bytes"),
        });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_than_the_limit_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(text(&path, 5).unwrap(), "12345");
        let error = text(&path, 4).unwrap_err().to_string();
        assert!(error.ends_with("longer than 4 bytes"), "{error}");
    }

    #[test]
    fn missing_file_is_none_only_where_absence_is_an_answer() {
        let path = Path::new("/nonexistent/netdiag");
        assert!(text(path, 10).is_err());
        assert_eq!(text_if_there(path, 10).unwrap(), None);
    }
}
