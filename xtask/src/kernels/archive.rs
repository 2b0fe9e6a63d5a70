//! Fetching from an archive: the index by its signature, every file by its hash. Nothing unverified is kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::index::{self, Kernel, PACKAGES, Package};
use super::line::{Keys, Line, Suite};
use crate::{command, image, place};

/// Debian's own package of Ubuntu's keys, by the hash that Debian's signed index of trixie has for it.
const UBUNTU_KEYS: (&str, &str) = (
    "http://deb.debian.org/debian/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1-0.2_all.deb",
    "b2e7ed48431bf9e7978ae810bbdaf253093570d6e3f864e575b7c13554b81174",
);

/// The newest kernel of the line that its suites offer now, with the suite that has it.
pub(super) fn newest(line: &Line) -> Result<(Kernel, Suite)> {
    let mut found: Option<(Kernel, Suite)> = None;
    for suite in line.suites {
        let packages = packages(suite)?;
        let Some(kernel) = index::newest(line, &packages) else { continue };
        let version = kernel.version.clone();
        found = Some(match found {
            Some((other, its_suite)) => {
                let newer = index::newer(other, kernel);
                let suite = if newer.version == version { *suite } else { its_suite };
                (newer, suite)
            }
            None => (kernel, *suite),
        });
    }
    let suites = || line.suites.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ");
    found.with_context(|| format!("no kernel {}…{} in {}", line.release, line.flavour, suites()))
}

/// Fetches a package into `folder`.
pub(super) fn fetch(suite: &Suite, package: &Package, folder: &Path) -> Result<PathBuf> {
    let file = folder.join(format!("{}.deb", package.name));
    download(&format!("{}/{}", suite.mirror, package.path), &file, Some(&package.sha256))?;
    Ok(file)
}

/// What the suite's index says of kernels.
fn packages(suite: &Suite) -> Result<Vec<Package>> {
    let folder = place::cache()?.join("kernels/index");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let base = format!("{}/dists/{}", suite.mirror, suite.name);
    let signed = folder.join(format!("{}.InRelease-{}", suite.name, std::process::id()));
    let release = download(&format!("{base}/InRelease"), &signed, None).and_then(|()| verified(suite, &signed));
    let _ = std::fs::remove_file(&signed);
    let release = release?;
    let hash = index::hash_in_release(&release, PACKAGES)
        .with_context(|| format!("the Release file of {} lists no {PACKAGES}", suite.name))?;
    // Named by its content: the one that is there is the right one.
    let file = folder.join(format!("{}-{hash}.xz", suite.name));
    if !file.is_file() {
        let by_hash = PACKAGES.replace("Packages.xz", &format!("by-hash/SHA256/{hash}"));
        download(&format!("{base}/{by_hash}"), &file, Some(hash))?;
    }
    let text = command::output(command::tool("xz").args(["--decompress", "--stdout"]).arg(&file))?;
    Ok(index::kernel_packages(&text))
}

/// The signed text, when somebody we know has signed it.
fn verified(suite: &Suite, signed: &Path) -> Result<String> {
    let keyring = match suite.keys {
        Keys::Debian => PathBuf::from("/usr/share/keyrings/debian-archive-keyring.gpg"),
        Keys::Ubuntu => ubuntu_keyring()?,
    };
    let text = signed.with_extension("verified");
    let mut gpgv = command::tool("gpgv");
    gpgv.args(["--status-fd", "1", "--keyring"]).arg(&keyring).arg("--output").arg(&text).arg(signed);
    // Its exit code also counts signatures by keys that are newer than our keyring; one good signature is enough.
    let said = gpgv.output().context("cannot start gpgv")?;
    let status = String::from_utf8_lossy(&said.stdout).into_owned();
    let release = std::fs::read_to_string(&text);
    let _ = std::fs::remove_file(&text);
    if !is_good(&status) {
        bail!("the index of {} has no good signature by {}:\n{status}", suite.name, keyring.display());
    }
    release.with_context(|| format!("gpgv wrote no {}", text.display()))
}

/// At least one valid signature, and none that is bad.
fn is_good(status: &str) -> bool {
    let has = |word: &str| status.lines().any(|line| line.split(' ').nth(1) == Some(word));
    has("VALIDSIG") && has("GOODSIG") && !has("BADSIG")
}

fn ubuntu_keyring() -> Result<PathBuf> {
    const NAME: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";
    let installed = Path::new("/").join(NAME);
    if installed.is_file() {
        return Ok(installed);
    }
    let folder = place::cache()?.join("kernels/ubuntu-keyring");
    let keyring = folder.join(NAME);
    if !keyring.is_file() {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let package = folder.join("package.deb");
        download(UBUNTU_KEYS.0, &package, Some(UBUNTU_KEYS.1))?;
        command::output(command::tool("dpkg-deb").arg("--extract").arg(&package).arg(&folder))?;
    }
    Ok(keyring)
}

/// The file is at `to` only when it is whole and, where the hash is known, the right one.
fn download(url: &str, to: &Path, sha256: Option<&str>) -> Result<()> {
    let part = to.with_extension(format!("part-{}", std::process::id()));
    let mut curl = command::tool("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--retry", "2"])
        .args(["--connect-timeout", "10", "--max-time", "300", "--output"])
        .arg(&part)
        .arg(url);
    let done = command::output(&mut curl).map(drop).and_then(|()| {
        if let Some(expected) = sha256 {
            let (digest, bytes) = image::digest_of_file(&part)?;
            if digest.strip_prefix("sha256:") != Some(expected) {
                bail!("{url} ({bytes} bytes) has {digest}, the index says {expected}");
            }
        }
        std::fs::rename(&part, to).with_context(|| format!("cannot rename to {}", to.display()))
    });
    let _ = std::fs::remove_file(&part);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_good_signature_is_enough_and_a_bad_one_too_many() {
        let unknown = "[GNUPG:] ERRSIG 78DB 1 10 01 9 9\n[GNUPG:] NO_PUBKEY 78DB\n";
        let good = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 78DB Debian\n[GNUPG:] VALIDSIG B8E5\n";
        assert!(!is_good(unknown));
        assert!(is_good(&format!("{unknown}{good}")));
        assert!(!is_good(&format!("{good}[GNUPG:] BADSIG 78DB Debian\n")));
        assert!(!is_good("gpgv: GOODSIG VALIDSIG\n"));
    }
}
