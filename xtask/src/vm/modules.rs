//! Kernel modules of Debian's unpacked kernel packages, put into the initramfs in the order in which they load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::initramfs::Initramfs;

/// Adds the modules and those that they depend on, as `modules/NAME.ko`, and returns the file names in load order.
/// A name that the packages do not have as a module is taken to be built into the kernel.
pub(crate) fn add(image: &mut Initramfs, packages: &[PathBuf], names: &[&str]) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    let directories = packages.iter().flat_map(|package| ["lib/modules", "usr/lib/modules"].map(|d| package.join(d)));
    for directory in directories.filter(|directory| directory.is_dir()) {
        collect(&directory, &mut files)?;
    }
    if files.is_empty() {
        bail!("the kernel's packages hold no modules");
    }
    let mut order = Vec::new();
    for name in names {
        add_after_dependencies(image, &files, name, &mut order)?;
    }
    Ok(order)
}

fn add_after_dependencies(
    image: &mut Initramfs,
    files: &BTreeMap<String, PathBuf>,
    name: &str,
    order: &mut Vec<String>,
) -> Result<()> {
    let file_name = format!("{name}.ko");
    let Some(path) = files.get(name) else { return Ok(()) };
    if order.contains(&file_name) {
        return Ok(());
    }
    let content = read(path)?;
    for dependency in dependencies(&content) {
        add_after_dependencies(image, files, &dependency, order)?;
    }
    image.file(&format!("modules/{file_name}"), &content, 0o644);
    order.push(file_name);
    Ok(())
}

/// Finds every module below `directory`, by the name that the kernel calls it.
fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The module, decompressed: kernels before 6.2 do not always do it themselves.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output =
            Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("cannot start xz")?;
        anyhow::ensure!(output.status.success(), "xz cannot unpack {}", path.display());
        return Ok(output.stdout);
    }
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// What the module's `.modinfo` section says that it depends on: zero-terminated `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module_itself() {
        assert_eq!(
            dependencies(b"\x7fELF\0license=GPL\0depends=libcrc32c,nf-tables\0name=x\0"),
            ["libcrc32c", "nf_tables"]
        );
        assert!(dependencies(b"\0license=GPL\0depends=\0name=veth\0").is_empty());
        assert!(dependencies(b"no section").is_empty());
    }
}
