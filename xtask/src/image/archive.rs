//! Writes an OCI archive: the image layout (`image-layout.md` of the OCI image specification, v1.1) in a tar.
//!
//! The same program gives the same bytes: no time, no user, no name of this machine is in it, and all is in order.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::containerfile::Instructions;

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What containerd calls the image when it imports the archive.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What Podman and skopeo call it.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// The program of one architecture, by the name that the specification takes from Go: `amd64`, `arm64`.
pub(super) struct Program<'a> {
    pub(super) architecture: &'a str,
    pub(super) bytes: &'a [u8],
}

/// The archive of an image that is called `name`, with one program for each architecture.
pub(super) fn write(name: &str, version: &str, instructions: &Instructions, programs: &[Program]) -> Result<Vec<u8>> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    for program in programs {
        manifests.push(write_image(&mut blobs, version, instructions, program)?);
    }
    // An image of several architectures is an index of its own, which the name is for.
    let mut named = match <[Value; 1]>::try_from(manifests) {
        Ok([only]) => only,
        Err(all) => blobs.add(INDEX, serde_json::to_vec(&index(&all))?),
    };
    named["annotations"] = json!({ CONTAINERD_NAME: full_name(name), REFERENCE: name });

    let mut files = blobs.0;
    files.insert("oci-layout".to_owned(), serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?);
    files.insert("index.json".to_owned(), serde_json::to_vec(&index(&[named]))?);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in &files {
        append(&mut archive, path, 0o644, content)?;
    }
    Ok(archive.into_inner()?)
}

/// Adds the blobs of one architecture's image, and gives the descriptor of its manifest.
fn write_image(blobs: &mut Blobs, version: &str, instructions: &Instructions, program: &Program) -> Result<Value> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, instructions.program.trim_start_matches('/'), 0o755, program.bytes)?;
    let layer = layer.into_inner()?;
    let diff_id = digest(&layer);
    // 255: an unknown operating system (RFC 1952 §2.3.1), whichever this is.
    let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    gzip.write_all(&layer)?;
    let layer = blobs.add(LAYER, gzip.finish()?);
    let config = json!({
        "architecture": program.architecture,
        "os": "linux",
        "config": instructions.config(&[("org.opencontainers.image.version", version)]),
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "cargo xtask image" }],
    });
    let config = blobs.add(CONFIG, serde_json::to_vec(&config)?);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let mut manifest = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?);
    manifest["platform"] = json!({ "architecture": program.architecture, "os": "linux" });
    Ok(manifest)
}

fn index(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// A name as clients of registries complete it (`ParseNormalizedNamed` of `github.com/distribution/reference`): what
/// kubelet asks containerd for.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

/// The digest of a blob, as descriptors have it.
pub(super) fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// Where a digest's blob is.
pub(super) fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// Files by their paths.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds one, and gives its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
        self.0.insert(blob_path(&digest), content);
        descriptor
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_as_clients_of_registries_complete_it() {
        for (name, full) in [
            ("lb-agent:1", "docker.io/library/lb-agent:1"),
            ("someone/lb-agent:1", "docker.io/someone/lb-agent:1"),
            ("registry.example:5000/lb-agent:1", "registry.example:5000/lb-agent:1"),
            ("localhost/lb-agent:1", "localhost/lb-agent:1"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }

    #[test]
    fn the_digest_is_sha_256_in_hexadecimal() {
        // The example of FIPS 180-4, appendix: "abc".
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), expected);
        assert_eq!(blob_path(expected), expected.replace("sha256:", "blobs/sha256/"));
    }
}
