//! A kernel as a guest needs it: its image, and the wanted modules with all they depend on, unpacked, in loading order.
//!
//! A kit lies in the cache under its release and the list of modules, so a kernel is fetched once.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::archive;
use super::line::Line;
use crate::{command, parts, place};

/// Everything is loaded when the guest starts, since nothing in it would load a module on demand.
const MODULES: &str = include_str!("modules");

pub(super) struct Kit {
    /// `uname -r`.
    pub(super) release: String,
    /// The package's version and the suite it is from.
    pub(super) origin: String,
    folder: PathBuf,
}

impl Kit {
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Files of modules, each after those it needs.
    pub(super) fn modules(&self) -> Result<Vec<PathBuf>> {
        let path = self.folder.join("order");
        let order = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(order.lines().map(|name| self.folder.join(name)).collect())
    }
}

/// The kit of the line's newest kernel. Where the archive cannot be asked, the newest of the cache, and says so.
pub(super) fn ensure(line: &Line) -> Result<Kit> {
    let kits = place::cache()?.join("kernels").join(line.name);
    std::fs::create_dir_all(&kits).with_context(|| format!("cannot create {}", kits.display()))?;
    let (kernel, suite) = match archive::newest(line) {
        Ok(found) => found,
        Err(error) => {
            let Some(kit) = newest_cached(&kits)? else { return Err(error) };
            println!("{}: {error:#}; taking {} from the cache", line.name, kit.release);
            return Ok(kit);
        }
    };
    let wanted = parts::short_hash(&[kernel.version.clone(), MODULES.to_owned()]);
    let folder = kits.join(format!("{}_{wanted}", kernel.release));
    let origin = format!("{} of {}", kernel.version, suite.name);
    if !folder.is_dir() {
        // Built beside its final place and renamed: an interrupted build leaves nothing that looks finished.
        let building = kits.join(format!("building-{}", std::process::id()));
        std::fs::create_dir_all(&building).with_context(|| format!("cannot create {}", building.display()))?;
        let built = kernel
            .packages
            .iter()
            .map(|package| archive::fetch(&suite, package, &building))
            .collect::<Result<Vec<_>>>()
            .and_then(|packages| build(&packages, &building))
            .and_then(|()| write(&building.join("origin"), origin.as_bytes()))
            .and_then(|()| {
                std::fs::rename(&building, &folder).with_context(|| format!("cannot rename to {}", folder.display()))
            });
        if let Err(error) = built {
            let _ = std::fs::remove_dir_all(&building);
            return Err(error.context(format!("cannot unpack {}", kernel.release)));
        }
    }
    Ok(Kit { release: kernel.release, origin, folder })
}

fn newest_cached(kits: &Path) -> Result<Option<Kit>> {
    let entries = std::fs::read_dir(kits).with_context(|| format!("cannot list {}", kits.display()))?;
    let finished = entries.flatten().filter_map(|entry| {
        let origin = std::fs::read_to_string(entry.path().join("origin")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        let (release, _) = name.rsplit_once('_')?;
        let made = entry.metadata().ok()?.modified().ok()?;
        Some((made, Kit { release: release.to_owned(), origin, folder: entry.path() }))
    });
    Ok(finished.max_by_key(|(made, _)| *made).map(|(_, kit)| kit))
}

/// Unpacks the packages' image and wanted modules into `folder`, and removes the packages.
fn build(packages: &[PathBuf], folder: &Path) -> Result<()> {
    let mut unpacked = Unpacked::default();
    for package in packages {
        unpacked.read(package)?;
        std::fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))?;
    }
    let image = unpacked.image.as_deref().context("no package holds a kernel image")?;
    write(&folder.join("vmlinuz"), image)?;
    let mut order = Vec::new();
    for name in MODULES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        add(name, &unpacked.modules, folder, &mut order)?;
    }
    write(&folder.join("order"), (order.join("\n") + "\n").as_bytes())
}

#[derive(Default)]
struct Unpacked {
    image: Option<Vec<u8>>,
    /// By name: the file's name and content, compressed as in the package.
    modules: HashMap<String, (String, Vec<u8>)>,
}

impl Unpacked {
    fn read(&mut self, package: &Path) -> Result<()> {
        let mut unpack = command::tool("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let files = unpack.stdout.take().expect("standard output was asked for as a pipe");
        let mut files = tar::Archive::new(files);
        let step = || format!("cannot read {}", package.display());
        for file in files.entries().with_context(step)? {
            let mut file = file.with_context(step)?;
            let path = file.path().with_context(step)?.into_owned();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            let is_image = name.starts_with("vmlinuz") && file.header().entry_type().is_file();
            let module = module_name(&name);
            if !is_image && module.is_none() {
                continue;
            }
            let mut content = Vec::new();
            file.read_to_end(&mut content).with_context(step)?;
            match module {
                Some(module) => {
                    self.modules.insert(module, (name, content));
                }
                None => self.image = Some(content),
            }
        }
        let status = unpack.wait().context("cannot wait for dpkg-deb")?;
        if !status.success() {
            bail!("dpkg-deb cannot unpack {}: {status}", package.display());
        }
        Ok(())
    }
}

/// Writes a module behind all it depends on. One that is not there is built in, or this kernel lacks it.
fn add(name: &str, modules: &HashMap<String, (String, Vec<u8>)>, folder: &Path, order: &mut Vec<String>) -> Result<()> {
    let (name, file) = (canonical(name), format!("{}.ko", canonical(name)));
    let Some((packed_name, packed)) = modules.get(&name) else { return Ok(()) };
    if order.contains(&file) {
        return Ok(());
    }
    let packed_file = folder.join(packed_name);
    write(&packed_file, packed)?;
    let program = match packed_file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Some("xz"),
        Some("zst") => Some("zstd"),
        _ => None,
    };
    let plain = match program {
        Some(program) => {
            command::output(command::tool(program).args(["-q", "-d", "-f"]).arg(&packed_file))?;
            let _ = std::fs::remove_file(&packed_file);
            packed_file.with_extension("")
        }
        None => packed_file,
    };
    let content = std::fs::read(&plain).with_context(|| format!("cannot read {}", plain.display()))?;
    for needed in needs(&content) {
        add(&needed, modules, folder, order)?;
    }
    std::fs::rename(&plain, folder.join(&file)).with_context(|| format!("cannot rename {}", plain.display()))?;
    order.push(file);
    Ok(())
}

/// The names behind `depends=` in a module's `.modinfo`, whose entries end with a zero.
fn needs(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let list = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The module in a file of this name: `nf-log-syslog.ko.xz` holds `nf_log_syslog`.
fn module_name(file: &str) -> Option<String> {
    let name = ["", ".xz", ".zst"].iter().find_map(|packed| file.strip_suffix(packed)?.strip_suffix(".ko"))?;
    Some(canonical(name))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_file_names_it_and_its_content_names_its_needs() {
        assert_eq!(module_name("crc32c-intel.ko.xz").as_deref(), Some("crc32c_intel"));
        assert_eq!(module_name("veth.ko").as_deref(), Some("veth"));
        assert_eq!(module_name("modules.dep"), None);
        let module = b"\x7fELF\0license=GPL\0depends=nf_conntrack,nf-nat\0name=x\0";
        assert_eq!(needs(module), ["nf_conntrack", "nf-nat"]);
        assert!(needs(b"\0depends=\0").is_empty());
    }

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let module = |needs: &str| format!("\0depends={needs}\0").into_bytes();
        let modules = HashMap::from([
            ("nft_ct".to_owned(), ("nft_ct.ko".to_owned(), module("nf_tables,nf_conntrack"))),
            ("nf_tables".to_owned(), ("nf_tables.ko".to_owned(), module(""))),
            ("nf_conntrack".to_owned(), ("nf_conntrack.ko".to_owned(), module("built_in"))),
        ]);
        let mut order = Vec::new();
        for wanted in ["nft-ct", "nf_tables", "not_there"] {
            add(wanted, &modules, folder.path(), &mut order).unwrap();
        }
        assert_eq!(order, ["nf_tables.ko", "nf_conntrack.ko", "nft_ct.ko"]);
        assert!(folder.path().join("nft_ct.ko").is_file());
    }
}
