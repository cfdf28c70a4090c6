//! The file of `--config`, followed: what it holds is read once, so an agent whose file changed ends, and whoever
//! restarts it gets one that follows the new contents. kube-proxy does the same (`eventHandler` of
//! `cmd/kube-proxy/app/options.go`), but goes by events: a file that is written again as it was ends it, too.
//!
//! What counts are the contents. A mounted `ConfigMap` is a link to a link to a directory, and the second link is
//! replaced; so the directory of the path is watched, and not the file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, time};

/// How long contents must stay the same: a file may be read while somebody writes it.
const QUIET: Duration = Duration::from_millis(200);
/// How often the contents are compared without an event: links may lead to other directories.
const LOOK: Duration = Duration::from_secs(10);

/// The file was changed, and this agent does not know what it says now.
#[derive(Debug, thiserror::Error)]
#[error("--config {}: the contents were changed: the agent ends, to be started again with them", path.display())]
pub(crate) struct ConfigurationChanged {
    path: PathBuf,
}

/// The file as it was when it was opened.
#[derive(Debug)]
pub(crate) struct ConfigurationFile {
    path: PathBuf,
    contents: Vec<u8>,
    happened: Arc<Notify>,
    /// Ends with this.
    _watcher: Option<RecommendedWatcher>,
}

impl ConfigurationFile {
    /// Begins to follow a file, before anybody else reads it: no change is missed. `None` if it cannot be read, of which
    /// the one who needs it tells.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let happened = Arc::new(Notify::new());
        let watcher = watch(path, Arc::clone(&happened));
        let watcher = watcher.inspect_err(|error| tracing::warn!("--config {}: inotify: {error}", path.display()));
        let contents = fs::read(path).ok()?;
        Some(Self { path: path.to_owned(), contents, happened, _watcher: watcher.ok() })
    }

    /// Ends when the file has other contents, and these have been there for a moment. A file that is away may come back
    /// as it was: until then nothing has changed.
    pub(crate) async fn changed(&self) -> ConfigurationChanged {
        loop {
            let mut found = self.read();
            while found.as_ref().is_some_and(|found| *found != self.contents) {
                time::sleep(QUIET).await;
                let now = self.read();
                if now == found {
                    return ConfigurationChanged { path: self.path.clone() };
                }
                found = now;
            }
            tokio::select! {
                () = self.happened.notified() => {}
                () = time::sleep(LOOK) => {}
            }
        }
    }

    fn read(&self) -> Option<Vec<u8>> {
        fs::read(&self.path).ok()
    }
}

/// Watches the directory of a file. Without, the file is still looked at now and then.
fn watch(path: &Path, happened: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Our own reading is among the other kinds of access.
        let reading = |kind| matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
        if !event.is_ok_and(|event| reading(event.kind)) {
            happened.notify_one();
        }
    })?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    watcher.watch(directory.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Well below [`LOOK`]: what comes sooner came by an event.
    const SOON: Duration = Duration::from_secs(5);
    /// Longer than contents must stay.
    const NEVER: Duration = Duration::from_secs(1);

    async fn is_told(file: &ConfigurationFile, within: Duration) -> bool {
        time::timeout(within, file.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_file_that_is_written_is_told_when_it_holds_something_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.conf");
        assert!(ConfigurationFile::open(&path).is_none(), "it is not there");
        fs::write(&path, "one").expect("written");
        let file = ConfigurationFile::open(&path).expect("it can be read");
        let write = async |text: &'static str| {
            time::sleep(QUIET).await;
            fs::write(&path, text).expect("written");
            fs::write(dir.path().join("other"), text).expect("written");
        };
        let (told, ()) = tokio::join!(is_told(&file, NEVER), write("one"));
        assert!(!told, "it holds the same");
        fs::remove_file(&path).expect("removed");
        assert!(!is_told(&file, NEVER).await, "it may come back");
        let (told, ()) = tokio::join!(is_told(&file, NEVER), write("one"));
        assert!(!told, "it came back as it was");
        let (told, ()) = tokio::join!(is_told(&file, SOON), write("two"));
        assert!(told);
    }

    #[tokio::test]
    async fn a_mounted_config_map_is_followed_through_its_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let publish = |version: &str, text: &str| {
            let data = dir.path().join(version);
            fs::create_dir(&data).expect("a directory");
            fs::write(data.join("config.conf"), text).expect("written");
            symlink(version, dir.path().join("..data_tmp")).expect("a link");
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).expect("renamed");
        };
        publish("..1", "one");
        let path = dir.path().join("config.conf");
        symlink("..data/config.conf", &path).expect("a link");
        let file = ConfigurationFile::open(&path).expect("it can be read");
        publish("..2", "one");
        assert!(!is_told(&file, NEVER).await, "another version of the same");
        let write = async || {
            time::sleep(QUIET).await;
            publish("..3", "three");
        };
        let (told, ()) = tokio::join!(is_told(&file, SOON), write());
        assert!(told);
    }
}
