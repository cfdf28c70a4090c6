//! What is asked of the file system.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// The largest file that is read, in bytes: 10,000 Services with their slices are about a tenth of it.
const MAX_FILE: u64 = 128 << 20;

/// Device and inode of a directory, `None` if it is something else.
pub(super) fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_dir().then(|| (metadata.dev(), metadata.ino())))
}

/// What changes when a file does: device, inode, size, and the times of modification and of change in nanoseconds.
pub(super) type Fingerprint = (u64, u64, u64, i128, i128);

/// The fingerprint of a file.
pub(super) fn fingerprint(metadata: &fs::Metadata) -> Fingerprint {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
    (metadata.dev(), metadata.ino(), metadata.size(), modified, nanoseconds(metadata.ctime(), metadata.ctime_nsec()))
}

/// The names of the manifests in a directory.
pub(super) fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json")) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The text of a file.
pub(super) fn read(path: &Path, metadata: &fs::Metadata) -> io::Result<String> {
    // A pipe or a device may never end.
    if !metadata.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("is larger than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| io::Error::other(format!("is not UTF-8: {error}")))
}
