//! Embeds the kernel programs: `ebpf/netdiag-ebpf` of cargo's target directory (from `cargo xtask ebpf`) or what `NETDIAG_EBPF_OBJECT`
//! names.
//!
//! Without them the agent builds all the same and says at run time what is missing.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=NETDIAG_EBPF_OBJECT");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("netdiag-ebpf");
    let object = match env::var_os("NETDIAG_EBPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "NETDIAG_EBPF_OBJECT names {}, which is no file", path.display());
            println!("cargo:rerun-if-changed={}", path.display());
            path
        }
        None => built_by_xtask(),
    };
    if object.is_file() {
        fs::copy(&object, &out)
            .unwrap_or_else(|error| panic!("cannot copy {} to {}: {error}", object.display(), out.display()));
    } else {
        fs::write(&out, []).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
    }
}

fn built_by_xtask() -> PathBuf {
    let crate_root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = crate_root.parent().unwrap_or(Path::new("/"));
    let directory = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("ebpf");
    // The directory is watched, not the file: cargo takes a file that is not there as always changed.
    let _ = fs::create_dir_all(&directory);
    println!("cargo:rerun-if-changed={}", directory.display());
    directory.join("netdiag-ebpf")
}
