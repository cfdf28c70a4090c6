//! The directory of the lab's manifests: where it is, whose it is, and that no other lab has it.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf, absolute},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where it is, for as long as this exists.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// Held until this process ends. A file that is open here is not open in the agents that we start.
    _lock: Option<File>,
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

impl Directory {
    /// The directory that was asked for, if nobody's files are in it; in the sandbox, which is gone when the lab is; or
    /// beside the program, which cargo puts into `target/<profile>`, emptied of what an earlier run left.
    pub(crate) fn make(asked: Option<&Path>, once: bool) -> Result<Self> {
        if let Some(path) = asked {
            return Self::make_asked(path).with_context(|| format!("--manifests {}", path.display()));
        }
        if once {
            return Ok(Self { path: PathBuf::from("/run/manifests"), _lock: None });
        }
        let program = env::current_exe().context("/proc/self/exe")?;
        let target = program.ancestors().nth(2).context("cargo's target directory")?;
        let owner = owner_of(target).with_context(|| target.display().to_string())?;
        let lab = target.join("lab");
        Self::make_own(&lab, owner).with_context(|| lab.display().to_string())
    }

    fn make_asked(path: &Path) -> Result<Self> {
        let path = absolute(path)?;
        let above = path.ancestors().find(|path| path.exists()).context("no directory is above it")?;
        make(&path, owner_of(above)?)?;
        ensure!(fs::read_dir(&path)?.next().is_none(), "not empty, and the lab would write over it");
        Ok(Self { path, _lock: None })
    }

    /// Takes `lab`, and makes an empty directory in it.
    fn make_own(lab: &Path, owner: Owner) -> Result<Self> {
        make(lab, owner)?;
        give(lab, owner)?;
        let path = lab.join("manifests");
        let lock = File::create(lab.join("lock"))?;
        give(&lab.join("lock"), owner)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another lab runs with the manifests in {}: end it, or give this one a directory (--manifests DIR)",
                path.display()
            ),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if let Err(error) = fs::remove_dir_all(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        make(&path, owner)?;
        Ok(Self { path, _lock: Some(lock) })
    }
}

/// Who will want to edit and remove what we make below `directory`: we are root, but sudo tells for whom, and without it,
/// it is whoever has that directory.
fn owner_of(directory: &Path) -> io::Result<Owner> {
    let number = |variable| env::var(variable).ok()?.parse().ok();
    if let (Some(user), Some(group)) = (number("SUDO_UID"), number("SUDO_GID")) {
        return Ok(Owner { user, group });
    }
    let metadata = fs::metadata(directory)?;
    Ok(Owner { user: metadata.uid(), group: metadata.gid() })
}

/// Makes a directory and those above it, and gives those that were missing to their owner.
fn make(directory: &Path, owner: Owner) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(directory)?;
    missing.into_iter().try_for_each(|path| give(path, owner))
}

fn give(path: &Path, Owner { user, group }: Owner) -> io::Result<()> {
    chown(path, Some(user), Some(group))
}

#[cfg(test)]
mod tests {
    use lb_tests::lab::manifest::Manifests;

    use super::*;

    /// Another user, where we may give files away.
    fn other() -> Owner {
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        if user.is_root() {
            Owner { user: 1234, group: 1235 }
        } else {
            Owner { user: user.into(), group: group.into() }
        }
    }

    fn owner(path: &Path) -> Owner {
        let metadata = fs::metadata(path).expect("it is there");
        Owner { user: metadata.uid(), group: metadata.gid() }
    }

    #[test]
    fn all_that_the_lab_writes_belongs_to_the_user_of_the_clone() {
        let target = tempfile::tempdir().expect("a directory");
        let lab = target.path().join("lab");
        // As versions that gave nothing away left it.
        fs::create_dir_all(lab.join("manifests")).expect("made");
        let directory = Directory::make_own(&lab, other()).expect("made");
        let manifests = Manifests::create(&directory.path, []);
        manifests.write("a.yaml", "");
        for path in [lab.clone(), lab.join("lock"), directory.path.clone(), directory.path.join("a.yaml")] {
            assert_eq!(owner(&path), other(), "{}", path.display());
        }
        assert_eq!(owner(&directory.path.join("nodes.yaml")), other());
    }

    #[test]
    fn directories_that_were_missing_get_an_owner_and_others_keep_theirs() {
        let root = tempfile::tempdir().expect("a directory");
        let before = owner(root.path());
        make(&root.path().join("a/b"), other()).expect("made");
        assert_eq!([owner(&root.path().join("a/b")), owner(&root.path().join("a"))], [other(); 2]);
        assert_eq!(owner(root.path()), before);
    }

    #[test]
    fn a_second_lab_is_told_and_leaves_the_manifests_of_the_first_alone() {
        let target = tempfile::tempdir().expect("a directory");
        let lab = target.path().join("lab");
        let first = Directory::make_own(&lab, other()).expect("made");
        let file = first.path.join("web.yaml");
        fs::write(&file, "edited").expect("written");
        let second = Directory::make_own(&lab, other()).map(|_| ()).expect_err("the first has it").to_string();
        assert!(second.starts_with("another lab runs") && second.contains("--manifests DIR"), "{second}");
        assert_eq!(fs::read_to_string(&file).expect("still there"), "edited");
        drop(first);
        let third = Directory::make_own(&lab, other()).expect("the first has ended");
        assert_eq!(fs::read_dir(&third.path).expect("made").count(), 0);
    }
}
