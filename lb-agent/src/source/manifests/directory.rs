//! The directory: which of its files to read, and when.
//!
//! * A file that is being written is read when its writer closes it, so a file that is half written drops nothing.
//!   Editors that write another file and rename it need nothing special. A file that is deleted and written anew is
//!   gone for as long as its writer waits in between, and one that is cut by truncate(2), which opens nothing, is read
//!   when it is next closed.
//! * Files are read again when inotify names them or when their metadata differ, so links (a mounted `ConfigMap` is a
//!   directory of them) and overflows of inotify's queue are covered.
//! * A directory that goes away, or is replaced, leaves the last state in force. It is looked for once a second. When
//!   it is back, it is read once nothing has happened in it for [`RETURN_QUIET`], and not before it has a manifest:
//!   an empty directory in the place of a full one is more likely a mount or a copy that is not there yet.
//! * The first read says whether a file has contents of which it cannot be said what they are
//!   ([`SourceEvent::Unread`]), and a later one that no file has any more. Until then a former agent's maps may be
//!   all that is left of them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use super::{
    document,
    file::{Fingerprint, fingerprint, identity, names, read},
    store::{Batch, Store},
};
use crate::{
    model::SourceEvent,
    source::{SourceMessage, Watch, WatchState},
};

/// How long nothing must have happened before files are read.
const QUIET: Duration = Duration::from_millis(75);
/// How long reading waits for quiet at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long nothing must have happened in a directory that came back.
const RETURN_QUIET: Duration = Duration::from_millis(500);
/// How long reading a directory that came back waits for that at most.
const LONGEST_RETURN: Duration = Duration::from_secs(10);
/// How often the directory itself is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// It does not exist, or may not be entered.
    #[error("manifests directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("manifests directory {}: is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be watched.
    #[error("manifests directory {}: inotify: {source}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: notify::Error,
    },
    /// No thread for it.
    #[error("thread for the manifests: {0}")]
    Thread(#[source] io::Error),
}

/// Follows a directory on a thread of its own until the receiving end of `sender` is dropped. `node` is the name of
/// this node.
///
/// The first read tells all three kinds as [`Replaced`](crate::model::SourceEvent::Replaced); after it only what
/// differs is told.
pub fn spawn(
    path: &Path,
    node: &str,
    sender: mpsc::Sender<SourceMessage>,
) -> Result<thread::JoinHandle<()>, ManifestsError> {
    let open = |source| ManifestsError::Open { path: path.to_owned(), source };
    let found = identity(path).map_err(open)?;
    let found = found.ok_or_else(|| ManifestsError::NotADirectory { path: path.to_owned() })?;
    // A directory that may be entered but not listed would look empty.
    fs::read_dir(path).map_err(open)?;
    let watch = |source| ManifestsError::Watch { path: path.to_owned(), source };
    let (tell, events) = channel();
    // The thread of the watcher ends with it, and the receiver lives longer: nothing is lost by ignoring the error.
    let mut watcher = notify::recommended_watcher(move |event| drop(tell.send(event))).map_err(watch)?;
    watcher.watch(path, RecursiveMode::NonRecursive).map_err(watch)?;
    let directory = Directory {
        path: path.to_owned(),
        node: node.to_owned(),
        sender,
        watcher,
        watched: Some(found),
        returning: false,
        pending: true,
        writing: HashSet::new(),
        touched: HashSet::new(),
        prints: HashMap::new(),
        problems: HashMap::new(),
        told: false,
        unread: false,
        store: Store::default(),
    };
    let thread = thread::Builder::new().name("manifests".to_owned());
    thread.spawn(move || drop(directory.follow(&events))).map_err(ManifestsError::Thread)
}

/// The receiving end of the channel is gone.
struct Closed;

#[expect(clippy::struct_excessive_bools, reason = "four things that happen independently of each other")]
struct Directory {
    path: PathBuf,
    node: String,
    sender: mpsc::Sender<SourceMessage>,
    watcher: RecommendedWatcher,
    /// The directory that inotify watches; `None` while there is none.
    watched: Option<(u64, u64)>,
    /// The directory was away and has not been read since.
    returning: bool,
    /// Something happened that needs the files to be looked at.
    pending: bool,
    /// Files that somebody writes to and has not closed.
    writing: HashSet<String>,
    /// Files that something happened to since they were read.
    touched: HashSet<String>,
    /// The files as they were when they were read.
    prints: HashMap<String, Fingerprint>,
    /// The problems that were told.
    problems: HashMap<Watch, Option<String>>,
    /// The first complete read was told.
    told: bool,
    /// It was told that files could not be read, and not yet that all could.
    unread: bool,
    store: Store,
}

impl Directory {
    fn follow(mut self, events: &Receiver<notify::Result<Event>>) -> Result<(), Closed> {
        loop {
            if self.check()? && self.pending {
                self.scan()?;
            }
            match events.recv_timeout(TICK) {
                Ok(event) => {
                    self.note(event);
                    self.settle(events, QUIET, LONGEST_WAIT);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot be, we hold the watcher; if it were, reading once a second would still follow the directory.
                Err(RecvTimeoutError::Disconnected) => {
                    self.pending = true;
                    thread::sleep(TICK);
                }
            }
            if self.sender.is_closed() {
                return Err(Closed);
            }
            if self.returning && self.pending {
                // What is being copied into the place of what was there must be complete.
                self.settle(events, RETURN_QUIET, LONGEST_RETURN);
            }
        }
    }

    /// Notes events until there are none for a moment, or for too long.
    fn settle(&mut self, events: &Receiver<notify::Result<Event>>, quiet: Duration, longest: Duration) {
        let deadline = Instant::now() + longest;
        while Instant::now() < deadline
            && let Ok(event) = events.recv_timeout(quiet)
        {
            self.note(event);
        }
    }

    fn note(&mut self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            _ => {
                // Events were lost: whether a writer closed its file is not known any more.
                self.writing.clear();
                self.prints.clear();
                self.pending = true;
                return;
            }
        };
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        // Our own reading is among the other kinds of access.
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        if matches!(event.kind, EventKind::Access(_)) && !closed {
            return;
        }
        for path in &event.paths {
            if *path == self.path {
                if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                    self.watched = None;
                }
                continue;
            }
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if written {
                self.writing.insert(name.to_owned());
                continue;
            }
            self.pending = true;
            self.touched.insert(name.to_owned());
            if !matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Metadata(_))) {
                self.writing.remove(name);
            }
        }
    }

    /// Whether the directory is there and watched; watches it where it has come back.
    fn check(&mut self) -> Result<bool, Closed> {
        let found = match identity(&self.path) {
            Ok(Some(found)) => found,
            other => {
                self.watched = None;
                let problem = other.err().map_or_else(|| "is not a directory".to_owned(), |error| error.to_string());
                self.state(self.directory(), Some(problem))?;
                return Ok(false);
            }
        };
        if self.watched == Some(found) {
            return Ok(true);
        }
        // Fails where inotify has dropped the watch by itself.
        let _ = self.watcher.unwatch(&self.path);
        if let Err(error) = self.watcher.watch(&self.path, RecursiveMode::NonRecursive) {
            self.watched = None;
            self.state(self.directory(), Some(format!("inotify: {error}")))?;
            return Ok(false);
        }
        self.watched = Some(found);
        self.returning = true;
        self.pending = true;
        self.writing.clear();
        // Reading waits until the copying is over.
        Ok(false)
    }

    fn directory(&self) -> Watch {
        Watch::Directory(self.path.clone())
    }

    /// Reads the files that may have changed and tells what did.
    fn scan(&mut self) -> Result<(), Closed> {
        let names = match names(&self.path) {
            Ok(names) => names,
            Err(error) => return self.state(self.directory(), Some(error.to_string())),
        };
        if self.returning && names.is_empty() && self.store.files().next().is_some() {
            self.pending = false;
            let problem = "came back without a manifest".to_owned();
            return self.state(self.directory(), Some(problem));
        }
        self.pending = false;
        self.returning = false;
        let mut batch = Batch::default();
        // Those that could never be read are not in the store.
        let with_problems = self.problems.keys().filter_map(|watch| match watch {
            Watch::File(path) => path.file_name()?.to_str().map(str::to_owned),
            Watch::Directory(_) | Watch::Api(_) => None,
        });
        let known: BTreeSet<String> = self.store.files().cloned().chain(with_problems).collect();
        for name in known.into_iter().filter(|name| !names.contains(name)) {
            self.prints.remove(&name);
            self.store.remove(&name, &mut batch);
            self.file_state(&name, None)?;
        }
        for name in names.iter().filter(|name| !self.writing.contains(*name)).cloned().collect::<Vec<_>>() {
            self.file(&name, &mut batch)?;
        }
        self.state(self.directory(), None)?;
        let broken = |(watch, problem): (&Watch, &Option<String>)| matches!(watch, Watch::File(_)) && problem.is_some();
        let unread = self.problems.iter().any(broken);
        if !self.told && unread {
            self.unread = true;
            self.send(SourceMessage::Event(SourceEvent::Unread(true)))?;
        }
        let messages = if self.told { self.store.changes(batch) } else { self.store.everything(&batch) };
        self.told = true;
        for message in messages {
            self.send(message)?;
        }
        // After what was in them.
        if self.unread && !unread {
            self.unread = false;
            self.send(SourceMessage::Event(SourceEvent::Unread(false)))?;
        }
        Ok(())
    }

    /// Reads a file if it may have changed.
    fn file(&mut self, name: &str, batch: &mut Batch) -> Result<(), Closed> {
        let touched = self.touched.remove(name);
        let path = self.path.join(name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let was_file = self.prints.contains_key(name);
                return if was_file { self.file_state(name, Some("is a directory".to_owned())) } else { Ok(()) };
            }
            Ok(metadata) => metadata,
            // What is gone by now is an event by now; a link to nowhere is a file that cannot be read.
            Err(error) => return self.file_state(name, Some(error.to_string())),
        };
        let print = fingerprint(&metadata);
        if !touched && self.prints.get(name) == Some(&print) {
            return Ok(());
        }
        self.prints.insert(name.to_owned(), print);
        let text = match read(&path, &metadata) {
            Ok(text) => text,
            Err(error) => return self.file_state(name, Some(error.to_string())),
        };
        let contents = document::read(name, &text, &self.node);
        let problem = (!contents.problems.is_empty()).then(|| contents.problems.join("; "));
        self.store.read(name, contents, batch);
        self.file_state(name, problem)
    }

    fn file_state(&mut self, name: &str, problem: Option<String>) -> Result<(), Closed> {
        let watch = Watch::File(self.path.join(name));
        if problem.is_none() && !self.problems.contains_key(&watch) {
            // Files that always worked are not worth a message each.
            return Ok(());
        }
        let works = problem.is_none();
        self.state(watch.clone(), problem)?;
        if works {
            self.problems.remove(&watch);
        }
        Ok(())
    }

    /// Tells the state of something, if it is not the one that was told last.
    fn state(&mut self, watch: Watch, problem: Option<String>) -> Result<(), Closed> {
        if self.problems.get(&watch) == Some(&problem) {
            return Ok(());
        }
        self.problems.insert(watch.clone(), problem.clone());
        self.send(SourceMessage::State(WatchState { watch, problem }))
    }

    fn send(&self, message: SourceMessage) -> Result<(), Closed> {
        self.sender.blocking_send(message).map_err(|_| Closed)
    }
}
