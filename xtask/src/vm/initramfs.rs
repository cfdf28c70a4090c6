//! Writes an initramfs: a cpio archive in the "newc" format, which the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` defines.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::exec;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// An archive in memory.
#[derive(Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
    names: BTreeSet<String>,
}

impl Initramfs {
    /// Adds a file and the directories above it. `name` has no leading slash. A name that is there already stays.
    pub(crate) fn file(&mut self, name: &str, content: &[u8], permissions: u32) {
        for (slash, _) in name.match_indices('/') {
            self.entry(&name[..slash], DIRECTORY, &[]);
        }
        self.entry(name, REGULAR | permissions, content);
    }

    /// Adds a program without its debugging information, and the shared libraries that it needs.
    pub(crate) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let stripped = std::env::temp_dir().join(format!("xtask-stripped-{}", std::process::id()));
        exec::run(Command::new("strip").arg("-o").arg(&stripped).arg(path))?;
        self.file(name, &std::fs::read(&stripped)?, 0o755);
        std::fs::remove_file(&stripped)?;
        for library in libraries(path)? {
            let content = std::fs::read(&library).with_context(|| library.clone())?;
            self.file(library.trim_start_matches('/'), &content, 0o755);
        }
        Ok(())
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        self.entries += 1;
        let length = |n: usize| u32::try_from(n).expect("files of the initramfs are under 4 GiB");
        // Inode, mode, uid, gid, links, mtime, size, device (2), device number (2), name with its zero, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, length(content.len()), 0, 0, 0, 0, length(name.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The absolute paths that `ldd` prints, the program interpreter among them; none for a static program.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    Ok(paths_in(&String::from_utf8_lossy(&output.stdout)))
}

fn paths_in(ldd: &str) -> Vec<String> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_each_directory_once_and_is_padded_to_four_bytes() {
        let mut image = Initramfs::default();
        image.file("bin/a", b"12345", 0o755);
        image.file("bin/b", b"", 0o644);
        let bytes = image.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 4, "bin, bin/a, bin/b and the trailer");
        assert!(headers.iter().all(|at| at % 4 == 0));
        // Mode and size of `bin/a`, in hexadecimal.
        let file = &text[headers[1]..headers[2]];
        assert_eq!((&file[14..22], &file[54..62]), ("000081ed", "00000005"));
        assert!(file.contains("bin/a\0") && file.contains("12345"));
    }

    #[test]
    fn libraries_and_the_interpreter_are_read_from_ldd() {
        let ldd =
            "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux.so.2 (0x7f)\n";
        assert_eq!(paths_in(ldd), ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"]);
        assert!(paths_in("\tstatically linked\n").is_empty());
    }
}
