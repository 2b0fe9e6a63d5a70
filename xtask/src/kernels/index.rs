//! What an archive offers: its `Release` names the hash of its `Packages`, which names the hash of each package.
//!
//! <https://wiki.debian.org/DebianRepository/Format>

use std::cmp::Ordering;

use super::line::Line;
use super::version;

/// The index of what we look for: all kernels are in `main`.
pub(super) const PACKAGES: &str = "main/binary-amd64/Packages.xz";

/// One stanza of `Packages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Below the mirror's top.
    pub(super) path: String,
    pub(super) sha256: String,
}

/// A kernel of a line and the packages it consists of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// `uname -r`.
    pub(super) release: String,
    pub(super) version: String,
    pub(super) packages: Vec<Package>,
}

/// Packages that hold a kernel's image and modules: one, or several since Debian's 6.19.
const KINDS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// The SHA-256 of the file at `path`, in lower-case hexadecimal.
pub(super) fn hash_in_release<'a>(release: &'a str, path: &str) -> Option<&'a str> {
    let (_, list) = release.split_once("\nSHA256:")?;
    let mut lines = list.lines().skip(1).take_while(|line| line.starts_with(' '));
    lines.find_map(|line| {
        let mut words = line.split_whitespace();
        let hash = words.next()?;
        (words.nth(1) == Some(path)).then_some(hash)
    })
}

/// The packages that kernels are made of. A stanza without one of the fields is of no use, and left out.
pub(super) fn kernel_packages(packages: &str) -> Vec<Package> {
    let stanzas = packages.split("\n\n");
    let kernels = stanzas.filter(|stanza| {
        let name = stanza.trim_start().strip_prefix("Package: ");
        name.is_some_and(|name| KINDS.iter().any(|kind| name.starts_with(kind)))
    });
    kernels
        .filter_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            Some(Package {
                name: field("Package: ")?,
                version: field("Version: ")?,
                path: field("Filename: ")?,
                sha256: field("SHA256: ")?,
            })
        })
        .collect()
}

/// The newest kernel of a line.
pub(super) fn newest(line: &Line, packages: &[Package]) -> Option<Kernel> {
    let images = packages.iter().filter(|package| line.release_of(&package.name).is_some());
    let image = images.max_by(|left, right| version::compare(&left.version, &right.version))?;
    let release = line.release_of(&image.name)?;
    let parts = packages.iter().filter(|package| {
        let kind = package.name.strip_suffix(release);
        package.version == image.version && kind.is_some_and(|kind| KINDS.contains(&kind))
    });
    Some(Kernel { release: release.to_owned(), version: image.version.clone(), packages: parts.cloned().collect() })
}

/// The newer of two kernels of one line.
pub(super) fn newer(left: Kernel, right: Kernel) -> Kernel {
    if version::compare(&left.version, &right.version) == Ordering::Less { right } else { left }
}

#[cfg(test)]
mod tests {
    use super::super::line::LINES;
    use super::*;

    const RELEASE: &str = "Origin: Debian\nMD5Sum:\n aa 10 main/binary-amd64/Packages.xz\nSHA256:\n \
        bb 10 main/binary-amd64/Packages.gz\n cc       20 main/binary-amd64/Packages.xz\nValid-Until: never\n";

    /// From trixie-backports, shortened.
    const INDEX: &str = "Package: linux-image-6.18.9+deb13-cloud-amd64
Version: 6.18.9-1~bpo13+1
Filename: pool/main/l/linux-signed-amd64/linux-image-6.18.9+deb13-cloud-amd64_6.18.9-1~bpo13+1_amd64.deb
SHA256: aa09

Package: linux-image-6.18.15+deb13-cloud-amd64
Version: 6.18.15-1~bpo13+1
Description: Linux 6.18 for x86-64 cloud
 Package: not a field
Filename: pool/main/l/linux-signed-amd64/linux-image-6.18.15+deb13-cloud-amd64_6.18.15-1~bpo13+1_amd64.deb
SHA256: aa15

Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Filename: pool/image
SHA256: bb01

Package: linux-modules-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Filename: pool/modules
SHA256: bb02

Package: linux-binary-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Filename: pool/binary
SHA256: bb03

Package: linux-modules-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1
Filename: pool/other-flavour
SHA256: bb04

Package: bash
Version: 5
Filename: pool/bash
SHA256: cc01
";

    fn line(name: &str) -> &'static Line {
        LINES.iter().find(|line| line.name == name).unwrap()
    }

    #[test]
    fn the_hash_is_taken_from_the_right_list() {
        assert_eq!(hash_in_release(RELEASE, PACKAGES), Some("cc"));
        assert_eq!(hash_in_release(RELEASE, "main/binary-arm64/Packages.xz"), None);
    }

    #[test]
    fn the_newest_release_is_taken_whatever_the_order() {
        let packages = kernel_packages(INDEX);
        assert_eq!(packages.len(), 6);
        let kernel = newest(line("6.18"), &packages).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.packages.len()), ("6.18.15+deb13-cloud-amd64", 1));
        assert_eq!(kernel.packages[0].sha256, "aa15");
        assert_eq!(newest(line("5.10"), &packages), None);
    }

    #[test]
    fn a_kernel_in_several_packages_is_found_whole() {
        let kernel = newest(line("7"), &kernel_packages(INDEX)).unwrap();
        let paths: Vec<&str> = kernel.packages.iter().map(|package| package.path.as_str()).collect();
        assert_eq!(paths, ["pool/image", "pool/modules", "pool/binary"]);
    }
}
