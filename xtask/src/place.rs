//! Where things are: the workspace, cargo's target folder, and our cache outside of both.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The workspace's top folder.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace's top folder")
}

/// Cargo's target folder of the main workspace.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative one from the caller's folder, which is the workspace's for `cargo xtask`.
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// What is expensive to build and does not belong to one checkout: cluster parts, images, tools.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = match (std::env::var_os("NETDIAG_CACHE"), std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
    {
        (Some(folder), _, _) => PathBuf::from(folder),
        (None, Some(folder), _) => PathBuf::from(folder).join("netdiag"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/netdiag"),
        (None, None, None) => PathBuf::from("/var/cache/netdiag"),
    };
    std::fs::create_dir_all(&folder).with_context(|| {
        format!("cannot create the cache folder {} (set NETDIAG_CACHE to another)", folder.display())
    })?;
    Ok(folder)
}
