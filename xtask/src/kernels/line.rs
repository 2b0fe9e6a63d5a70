//! The kernels that are booted: one line of releases each, and the archive whose newest release of it is taken.

/// Releases that differ in their last number only.
#[derive(Debug)]
pub(super) struct Line {
    /// `5.10`; also what the user calls it.
    pub(super) name: &'static str,
    /// What a release starts with, by the package's name: `5.10.`.
    pub(super) release: &'static str,
    /// What a release ends with. The cloud flavour has what virtual machines need, and is half the size.
    pub(super) flavour: &'static str,
    pub(super) suites: &'static [Suite],
}

/// One suite of a Debian-like archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) mirror: &'static str,
    pub(super) name: &'static str,
    pub(super) keys: Keys,
}

/// Whose keys sign the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Debian,
    Ubuntu,
}

const fn debian(name: &'static str) -> Suite {
    Suite { mirror: "http://deb.debian.org/debian", name, keys: Keys::Debian }
}

const fn debian_security(name: &'static str) -> Suite {
    Suite { mirror: "http://deb.debian.org/debian-security", name, keys: Keys::Debian }
}

const fn ubuntu_security(name: &'static str) -> Suite {
    Suite { mirror: "http://security.ubuntu.com/ubuntu", name, keys: Keys::Ubuntu }
}

const CLOUD: &str = "-cloud-amd64";

/// The oldest kernel we promise, the long-term ones that distributions run, and the newest there is.
pub(super) const LINES: [Line; 6] = [
    Line { name: "5.10", release: "5.10.", flavour: CLOUD, suites: &[debian_security("bullseye-security")] },
    Line { name: "5.15", release: "5.15.", flavour: "-generic", suites: &[ubuntu_security("jammy-security")] },
    Line { name: "6.1", release: "6.1.", flavour: CLOUD, suites: &[debian_security("bookworm-security")] },
    Line { name: "6.12", release: "6.12.", flavour: CLOUD, suites: &[debian_security("trixie-security")] },
    Line { name: "6.18", release: "6.18.", flavour: CLOUD, suites: &[debian("trixie-backports")] },
    Line {
        name: "7",
        release: "7.",
        flavour: CLOUD,
        // Release candidates are in experimental; sid's index is thirty times as large, and holds nothing newer.
        suites: &[debian("trixie-backports"), debian("experimental")],
    },
];

impl Line {
    /// The release in a package's name, `linux-image-5.10.0-46-cloud-amd64`, when it is one of this line.
    pub(super) fn release_of<'a>(&self, package: &'a str) -> Option<&'a str> {
        let release = package.strip_prefix("linux-image-")?;
        (release.starts_with(self.release) && release.ends_with(self.flavour)).then_some(release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_own_flavour_counts() {
        let releases = |package: &str| LINES.each_ref().map(|line| line.release_of(package).is_some());
        assert_eq!(releases("linux-image-5.10.0-46-cloud-amd64"), [true, false, false, false, false, false]);
        assert_eq!(releases("linux-image-6.1.0-56-cloud-amd64"), [false, false, true, false, false, false]);
        assert_eq!(releases("linux-image-6.18.15+deb13-cloud-amd64"), [false, false, false, false, true, false]);
        assert_eq!(releases("linux-image-7.3-cloud-amd64"), [false, false, false, false, false, true]);
        for other in ["linux-image-5.10.0-46-amd64", "linux-image-5.15.0-1113-kvm", "linux-image-cloud-amd64"] {
            assert_eq!(releases(other), [false; 6], "{other}");
        }
    }
}
