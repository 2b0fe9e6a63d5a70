//! Container images without Docker or a registry: one layer of files in an OCI image layout, packed as a tar file that
//! `ctr images import` and `kind load image-archive` read.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::digest;
use serde_json::json;

/// What an image holds.
pub(crate) struct Image<'a> {
    /// With its registry, `docker.io/…`: the kubelet looks for exactly this name when it must not pull.
    pub(crate) reference: &'a str,
    pub(crate) entrypoint: &'a [&'a str],
    /// Programs: (file on this machine, path in the image).
    pub(crate) programs: &'a [(PathBuf, &'a str)],
    /// Symbolic links: (path in the image, target).
    pub(crate) links: &'a [(&'a str, &'a str)],
}

/// Folders that programs expect; `/run` and the like are mounted by the container runtime.
const FOLDERS: [(&str, u32); 5] = [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755)];

/// Packs `image` into `archive` and returns its digest. The same content gives the same digest.
pub(crate) fn pack(image: &Image<'_>, archive: &Path) -> Result<String> {
    let packing = archive.with_extension(format!("packing-{}", std::process::id()));
    let layer = archive.with_extension(format!("layer-{}", std::process::id()));
    let packed = pack_into(image, &layer, &packing);
    let _ = std::fs::remove_file(&layer);
    match packed {
        Ok(digest) => {
            std::fs::rename(&packing, archive).with_context(|| format!("cannot rename to {}", archive.display()))?;
            Ok(digest)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&packing);
            Err(error.context(format!("cannot pack the image {}", image.reference)))
        }
    }
}

/// A tag that follows the programs' content and their places.
pub(crate) fn tag_of(programs: &[(PathBuf, &str)]) -> Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    for (source, path) in programs {
        context.update(digest_of_file(source)?.0.as_bytes());
        context.update(path.as_bytes());
    }
    Ok(hexadecimal(&context.finish().as_ref()[..6]))
}

/// Lower-case hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

fn pack_into(image: &Image<'_>, layer: &Path, archive: &Path) -> Result<String> {
    write_layer(image, layer)?;
    let (layer_digest, layer_size) = digest_of_file(layer)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Env": ["PATH=/bin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config.as_bytes()),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest,
            "size": layer_size,
        }],
    })
    .to_string();
    let manifest_digest = digest_of(manifest.as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": manifest.len(),
            "annotations": {
                "io.containerd.image.name": image.reference,
                "org.opencontainers.image.ref.name": image.reference,
            },
        }],
    })
    .to_string();

    let file = File::create(archive).with_context(|| format!("cannot create {}", archive.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, index.as_bytes())?;
    append(&mut tar, &blob(&digest_of(config.as_bytes())), 0o644, config.as_bytes())?;
    append(&mut tar, &blob(&manifest_digest), 0o644, manifest.as_bytes())?;
    append_file(&mut tar, &blob(&layer_digest), 0o644, layer)?;
    tar.into_inner()
        .and_then(|mut file| file.flush())
        .with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(manifest_digest)
}

fn write_layer(image: &Image<'_>, layer: &Path) -> Result<()> {
    let file = File::create(layer).with_context(|| format!("cannot create {}", layer.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    for (folder, mode) in FOLDERS {
        let mut header = header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, folder, std::io::empty()).with_context(|| format!("cannot add /{folder}"))?;
    }
    for (source, path) in image.programs {
        append_file(&mut tar, path, 0o755, source)?;
    }
    for (path, target) in image.links {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, path, target).with_context(|| format!("cannot add the link /{path}"))?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).with_context(|| format!("cannot write {}", layer.display()))
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(mode, content.len() as u64), path, content)
        .with_context(|| format!("cannot add {path}"))
}

fn append_file(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, source: &Path) -> Result<()> {
    let file = File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
    let size = file.metadata().with_context(|| format!("cannot read the size of {}", source.display()))?.len();
    tar.append_data(&mut header(mode, size), path, BufReader::new(file))
        .with_context(|| format!("cannot add {}", source.display()))
}

/// No times and no owner: the digest depends on the content alone.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", hexadecimal(digest::digest(&digest::SHA256, content).as_ref()))
}

/// `sha256:` and the digest, and the file's length.
pub(crate) fn digest_of_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut chunk).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok((format!("sha256:{}", hexadecimal(context.finish().as_ref())), size));
        }
        context.update(&chunk[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(content: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, content).unwrap();
        let image = Image {
            reference: "docker.io/netdiag/test:1",
            entrypoint: &["/program"],
            programs: &[(program, "bin/program")],
            links: &[("bin/other", "program")],
        };
        let digest = pack(&image, &folder.path().join("image.tar")).unwrap();
        (folder, digest)
    }

    fn entries(archive: &Path) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn digest_is_the_one_sha256sum_prints() {
        assert_eq!(digest_of(b"netdiag\n"), "sha256:caae5714bde5d8639b4519898d60305dfac58dcc3de60db79cb69c93b565816a");
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_reached_from_the_index() {
        let (folder, digest) = packed("hello");
        let entries = entries(&folder.path().join("image.tar"));
        let content = |path: &str| &entries.iter().find(|(name, _)| name == path).expect(path).1;
        for (path, content) in entries.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(*path, blob(&digest_of(content)));
        }
        let index: serde_json::Value = serde_json::from_slice(content("index.json")).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest);
        let manifest: serde_json::Value = serde_json::from_slice(content(&blob(&digest))).unwrap();
        let layer = content(&blob(manifest["layers"][0]["digest"].as_str().unwrap()));
        assert_eq!(manifest["layers"][0]["size"], layer.len());
        let config: serde_json::Value =
            serde_json::from_slice(content(&blob(manifest["config"]["digest"].as_str().unwrap()))).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    }

    #[test]
    fn same_content_gives_the_same_digest() {
        assert_eq!(packed("hello").1, packed("hello").1);
        assert_ne!(packed("hello").1, packed("other").1);
    }

    #[test]
    fn nothing_but_the_archive_is_left() {
        let (folder, _) = packed("hello");
        let mut names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["image.tar", "program"]);
    }
}
