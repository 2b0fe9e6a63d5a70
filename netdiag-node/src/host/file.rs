//! Bounded reads of small text files: /proc has files that grow with the machine.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

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
