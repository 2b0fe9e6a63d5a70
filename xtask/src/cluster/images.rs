//! The images that every cluster has, packed once and kept in the cache.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::image::{self, Image};
use crate::parts::{self, Part};
use crate::place;

/// The image of every pod's sandbox. A name with its registry, since the kubelet must find it without pulling.
pub(super) const PAUSE: &str = "docker.io/netdiag/pause:1";
const TOOLS: &str = "docker.io/netdiag/tools:1";
const COREDNS: &str = "docker.io/netdiag/coredns:1";

/// Debian's busybox-static: programs in images cannot rely on any library.
const BUSYBOX: &str = "/bin/busybox";
const BUSYBOX_LINKS: [(&str, &str); 12] = [
    ("bin/sh", "busybox"),
    ("bin/cat", "busybox"),
    ("bin/echo", "busybox"),
    ("bin/ip", "busybox"),
    ("bin/ls", "busybox"),
    ("bin/nc", "busybox"),
    ("bin/netstat", "busybox"),
    ("bin/nslookup", "busybox"),
    ("bin/ping", "busybox"),
    ("bin/ps", "busybox"),
    ("bin/sleep", "busybox"),
    ("bin/wget", "busybox"),
];

/// The archives of all images, packed if they are not in the cache.
pub(super) fn ensure() -> Result<Vec<PathBuf>> {
    let program = |part: &str, name: &str| -> Result<PathBuf> {
        let part: &Part = parts::CLUSTER.iter().find(|known| known.name == part).expect("only known parts are named");
        Ok(parts::ensure(part)?.join(name))
    };
    let pause = program("pause", "pause")?;
    let agnhost = program("kubernetes", "agnhost")?;
    let coredns = program("coredns", "coredns")?;
    Ok(vec![
        cached(&Image { reference: PAUSE, entrypoint: &["/pause"], programs: &[(pause, "pause")], links: &[] })?,
        // agnhost is Kubernetes' own test program: a server and client of many kinds.
        cached(&Image {
            reference: TOOLS,
            entrypoint: &["/agnhost"],
            programs: &[(agnhost, "agnhost"), (PathBuf::from(BUSYBOX), "bin/busybox")],
            links: &BUSYBOX_LINKS,
        })?,
        cached(&Image {
            reference: COREDNS,
            entrypoint: &["/coredns"],
            programs: &[(coredns, "coredns")],
            links: &[],
        })?,
    ])
}

/// Sources in the cache have their content's hash in their path, so paths, sizes and times decide the image.
fn cached(image: &Image<'_>) -> Result<PathBuf> {
    let mut inputs = vec![format!("{} {:?} {:?} {:?}", image.reference, image.entrypoint, image.programs, image.links)];
    for (source, _) in image.programs {
        let metadata = source.metadata().with_context(|| format!("cannot find {}", source.display()))?;
        inputs.push(format!("{} {:?}", metadata.len(), metadata.modified().ok()));
    }
    let folder = place::cache()?.join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = image.reference.rsplit(['/', ':']).nth(1).unwrap_or(image.reference);
    let archive = folder.join(format!("{name}-{}.tar", parts::short_hash(&inputs)));
    if !archive.is_file() {
        image::pack(image, &archive)?;
    }
    Ok(archive)
}
