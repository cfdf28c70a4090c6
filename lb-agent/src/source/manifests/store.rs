//! What the files of a directory say about each object, and what follows from a change of some of them.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Contents;
use crate::{
    model::{Change, ObjectKey, ObjectKind, Rejection, SourceEvent},
    source::{SourceMessage, reduce::Reduced},
};

/// Name of a file in the directory.
type FileName = String;
/// What makes an object itself.
type Identity = (ObjectKind, ObjectKey);

/// What one file says about an object.
#[derive(Debug)]
struct Claim {
    /// The last good state; `None` where there was none.
    state: Option<Change>,
    /// Whether what the file says now was rejected.
    rejected: bool,
}

/// The objects of a directory.
///
/// An object belongs to the first file, by name, that has it. Each file keeps the last good state of its objects: one
/// that is rejected keeps it, and where a file has documents of which it cannot be said which object they are, so do
/// all its objects that are not in it any more.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// The files that claim each object. Never empty.
    objects: BTreeMap<Identity, BTreeMap<FileName, Claim>>,
    files: BTreeMap<FileName, BTreeSet<Identity>>,
}

/// What came of reading some files.
#[derive(Debug, Default)]
pub(super) struct Batch {
    rejections: Vec<Rejection>,
    /// The objects that were touched, with what was known of them before.
    touched: BTreeMap<Identity, Known>,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    /// No file has it, or what is in force is that it is not to be served.
    Absent,
    /// A file has it and has never had it in a good state: others may know one.
    Rejected,
    /// Its last good state.
    State(Change),
}

impl Store {
    /// Takes what a file holds now.
    pub(super) fn read(&mut self, file: &str, contents: Contents, batch: &mut Batch) {
        let before = self.files.remove(file).unwrap_or_default();
        let mut now = BTreeSet::new();
        for (kind, reduced) in contents.objects {
            let Reduced { key, change, rejections } = reduced;
            batch.rejections.extend(rejections);
            let identity = (kind, key);
            if now.contains(&identity) {
                batch.rejections.push(twice(&identity, file, "an earlier document of this file"));
                continue;
            }
            batch.touched.entry(identity.clone()).or_insert_with(|| self.known(&identity));
            let known = self.state(&identity);
            let rejected = change.is_none();
            let claims = self.objects.entry(identity.clone()).or_default();
            let own = claims.remove(file).and_then(|claim| claim.state);
            // A file that takes an object over with a broken document takes its last good state over too.
            claims.insert(file.to_owned(), Claim { state: change.or(own).or(known), rejected });
            now.insert(identity);
        }
        for identity in before {
            if now.contains(&identity) {
                continue;
            }
            if contents.problems.is_empty() {
                self.forget(file, identity, batch);
            } else {
                now.insert(identity);
            }
        }
        self.files.insert(file.to_owned(), now);
    }

    /// The names of the files that are known.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Takes note that a file is gone.
    pub(super) fn remove(&mut self, file: &str, batch: &mut Batch) {
        for identity in self.files.remove(file).unwrap_or_default() {
            self.forget(file, identity, batch);
        }
    }

    fn forget(&mut self, file: &str, identity: Identity, batch: &mut Batch) {
        let known = self.known(&identity);
        if let Some(claims) = self.objects.get_mut(&identity) {
            claims.remove(file);
            if claims.is_empty() {
                self.objects.remove(&identity);
            }
        }
        batch.touched.entry(identity).or_insert(known);
    }

    /// The state that is in force, where the object exists.
    fn state(&self, identity: &Identity) -> Option<Change> {
        let (_, claim) = self.objects.get(identity)?.first_key_value()?;
        claim.state.clone().filter(Change::exists)
    }

    fn known(&self, identity: &Identity) -> Known {
        let first = self.objects.get(identity).and_then(|claims| claims.first_key_value());
        match first.map(|(_, claim)| claim) {
            Some(Claim { state: None, rejected: true }) => Known::Rejected,
            Some(Claim { state: Some(state), .. }) if state.exists() => Known::State(state.clone()),
            _ => Known::Absent,
        }
    }

    /// The messages that a batch amounts to: rejections, then one change for each object that differs. An object that
    /// was only ever rejected, and is gone now, is told: whoever knew a last good state of it kept that.
    pub(super) fn changes(&self, batch: Batch) -> Vec<SourceMessage> {
        let mut messages = self.rejections(&batch);
        for (identity, before) in batch.touched {
            let now = self.known(&identity);
            let change = match now {
                _ if now == before => continue,
                Known::State(change) => change,
                Known::Rejected if before == Known::Absent => continue,
                Known::Rejected | Known::Absent => Change::gone(identity.0, identity.1),
            };
            messages.push(SourceMessage::Event(SourceEvent::Changed(change)));
        }
        messages
    }

    /// The messages of the first complete read: rejections, then all objects of each kind.
    pub(super) fn everything(&self, batch: &Batch) -> Vec<SourceMessage> {
        let mut messages = self.rejections(batch);
        for kind in ObjectKind::ALL {
            let of_kind = || self.objects.iter().filter(move |((of, _), _)| *of == kind);
            let objects = of_kind().filter_map(|(identity, _)| self.state(identity)).collect();
            let rejected = of_kind()
                .filter(|(identity, _)| self.known(identity) == Known::Rejected)
                .map(|((_, key), _)| key.clone())
                .collect();
            messages.push(SourceMessage::Event(SourceEvent::Replaced { kind, objects, rejected }));
        }
        messages
    }

    fn rejections(&self, batch: &Batch) -> Vec<SourceMessage> {
        let mut rejections = batch.rejections.clone();
        for identity in batch.touched.keys() {
            let mut files = self.objects.get(identity).into_iter().flat_map(BTreeMap::keys);
            let Some(first) = files.next() else { continue };
            rejections.extend(files.map(|file| twice(identity, file, first)));
        }
        rejections.into_iter().map(SourceMessage::Rejected).collect()
    }
}

/// An object is in a file although another place, which wins, has it already.
fn twice((kind, key): &Identity, file: &str, first: &str) -> Rejection {
    Rejection {
        kind: *kind,
        object: key.clone(),
        uid: None,
        origin: Some(file.to_owned()),
        field: "metadata.name".to_owned(),
        problem: format!("the object is also in {first}, which wins"),
    }
}
