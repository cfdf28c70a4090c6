//! Reads an OCI archive as a container engine does, and trusts nothing in it.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::archive::{CONFIG, INDEX, LAYER, MANIFEST, blob_path, digest};

/// An image of one architecture.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) architecture: String,
    /// Compressed size of its layers, in bytes: what a node downloads.
    pub(super) download: u64,
    /// The part `config` of its configuration.
    pub(super) config: Value,
    pub(super) files: BTreeMap<String, File>,
}

/// A file of an image.
#[derive(Debug, PartialEq)]
pub(super) struct File {
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    pub(super) modified: u64,
    pub(super) content: Vec<u8>,
}

/// The images of an archive. Fails where a digest, a size or a type is not what the reference to it says.
pub(super) fn read(archive: &[u8]) -> Result<Vec<Image>> {
    let blobs = unpack(archive)?;
    let json = |path: &str| -> Result<Value> {
        let file = blobs.get(path).with_context(|| format!("the archive has no {path}"))?;
        serde_json::from_slice(&file.content).with_context(|| path.to_owned())
    };
    ensure!(json("oci-layout")?["imageLayoutVersion"] == "1.0.0", "not an OCI image layout");
    let index = json("index.json")?;
    let mut manifests = Vec::new();
    for descriptor in list(&index["manifests"]) {
        if descriptor["mediaType"] == INDEX {
            let inner: Value = serde_json::from_slice(blob(&blobs, descriptor, INDEX)?)?;
            manifests.extend(list(&inner["manifests"]).to_vec());
        } else {
            manifests.push(descriptor.clone());
        }
    }
    ensure!(!manifests.is_empty(), "index.json names no image");
    manifests.iter().map(|descriptor| read_image(&blobs, descriptor)).collect()
}

fn read_image(blobs: &BTreeMap<String, File>, descriptor: &Value) -> Result<Image> {
    let manifest: Value = serde_json::from_slice(blob(blobs, descriptor, MANIFEST)?)?;
    let config: Value = serde_json::from_slice(blob(blobs, &manifest["config"], CONFIG)?)?;
    ensure!(
        config["architecture"] == descriptor["platform"]["architecture"] && config["os"] == "linux",
        "the manifest and its configuration are of different platforms"
    );
    let layers = list(&manifest["layers"]);
    let diff_ids = list(&config["rootfs"]["diff_ids"]);
    ensure!(!layers.is_empty() && layers.len() == diff_ids.len(), "layers and diff_ids differ in number");
    let (mut files, mut download) = (BTreeMap::new(), 0);
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let compressed = blob(blobs, layer, LAYER)?;
        download += compressed.len() as u64;
        let mut tar = Vec::new();
        GzDecoder::new(compressed).read_to_end(&mut tar).context("a layer")?;
        ensure!(*diff_id == digest(&tar), "a layer is not what the configuration's diff_id says");
        files.extend(unpack(&tar)?);
    }
    let architecture = config["architecture"].as_str().context("architecture")?.to_owned();
    Ok(Image { architecture, download, config: config["config"].clone(), files })
}

/// What a descriptor describes.
fn blob<'a>(blobs: &'a BTreeMap<String, File>, descriptor: &Value, media_type: &str) -> Result<&'a [u8]> {
    ensure!(descriptor["mediaType"] == media_type, "{descriptor}: expected a {media_type}");
    let wanted = descriptor["digest"].as_str().with_context(|| format!("{descriptor}: no digest"))?;
    let content = &blobs.get(&blob_path(wanted)).with_context(|| format!("the archive has no {wanted}"))?.content;
    let found = digest(content);
    ensure!(found == wanted, "the blob {wanted} has the digest {found}");
    ensure!(descriptor["size"] == content.len(), "{wanted} has {} bytes: {descriptor}", content.len());
    Ok(content)
}

fn unpack(tar: &[u8]) -> Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().context("a path that is not UTF-8")?.to_owned();
        let header = entry.header();
        ensure!(header.entry_type().is_file(), "{path} is no plain file");
        let owner = (header.uid()?, header.gid()?);
        let (mode, modified) = (header.mode()?, header.mtime()?);
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(path, File { mode, owner, modified, content });
    }
    Ok(files)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::super::archive::{Program, write};
    use super::super::containerfile::Instructions;
    use super::*;

    fn instructions() -> Instructions {
        Instructions::read(include_str!("../../../Containerfile")).unwrap()
    }

    /// An archive of programs that do not compress to nothing.
    fn archive(architectures: &[&str]) -> Vec<u8> {
        let bytes: Vec<u8> = (0..10_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let programs: Vec<_> =
            architectures.iter().map(|architecture| Program { architecture, bytes: &bytes }).collect();
        write("lb-agent:1.2.3", "1.2.3", &instructions(), &programs).unwrap()
    }

    #[test]
    fn what_is_read_back_is_what_was_written() {
        for architectures in [&["amd64"][..], &["amd64", "arm64"]] {
            let images = read(&archive(architectures)).unwrap();
            assert_eq!(images.iter().map(|image| image.architecture.as_str()).collect::<Vec<_>>(), architectures);
            for Image { config, files, download, .. } in images {
                assert_eq!(config, instructions().config(&[("org.opencontainers.image.version", "1.2.3")]));
                let [(path, File { mode, owner, modified, content })] = files.iter().collect::<Vec<_>>()[..] else {
                    panic!("{:?}", files.keys())
                };
                assert_eq!((path.as_str(), *mode, *owner, *modified), ("lb-agent", 0o755, (0, 0), 0));
                assert_eq!(content[4..8], 2_654_435_761_u32.to_le_bytes());
                assert!(download > 1000, "{download}");
            }
        }
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        assert_eq!(digest(&archive(&["amd64", "arm64"])), digest(&archive(&["amd64", "arm64"])));
        assert_ne!(digest(&archive(&["amd64"])), digest(&archive(&["arm64"])));
    }

    #[test]
    fn a_byte_that_changed_anywhere_in_a_blob_is_noticed() {
        let whole = archive(&["amd64"]);
        let mut blobs = 0;
        let places: Vec<(u64, u64)> = tar::Archive::new(&whole[..])
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.path().unwrap().starts_with("blobs"))
            .map(|entry| (entry.raw_file_position(), entry.size()))
            .collect();
        for (start, size) in places {
            let mut changed = whole.clone();
            changed[usize::try_from(start + size / 2).unwrap()] ^= 1;
            let error = read(&changed).unwrap_err().to_string();
            assert!(error.contains("has the digest"), "{error}");
            blobs += 1;
        }
        assert_eq!(blobs, 3, "a layer, a configuration, a manifest");
    }
}
