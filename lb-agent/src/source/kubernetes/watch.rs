//! The watch of one kind: kube's watcher, and what it leaves to its caller.
//!
//! kube's watcher resumes a watch that ended and lists again when the server no longer knows where it ended. What it
//! does not do, and this module does:
//!
//! * A list that is streamed ([`streaming_lists`](watcher::Config::streaming_lists), `WatchList` in Kubernetes) fails
//!   for ever on a server that cannot. Servers from 1.27 on without the feature, and all older ones, refuse the
//!   request as invalid; a proxy that ignores the parameter gives a watch whose first list never ends. Both make us
//!   list by pages instead, until the next start.
//! * A server that answers, but refuses to resume, is asked to resume for ever. We start over.
//! * It says nothing when a watch that had failed is open again. Silence for a while says it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api,
    runtime::watcher::{self, DefaultBackoff, Event},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    arrived::Arrived,
    client::{CONNECT_TIMEOUT, with_causes},
};
use crate::{
    model::{Change, ObjectKey, Rejection, SourceEvent},
    source::{Reduce, Reduced, SourceMessage, Watch, WatchState, reduce::cut},
};

/// How long a streamed list may be silent before it is taken for a server that does not stream lists. A server that
/// does sends what is in its memory.
pub(super) const STREAM_SILENCE: Duration = Duration::from_secs(20);
/// How long a watch that is being resumed must not fail to count as working: longer than a connection may take.
pub(super) const RESUMED_AFTER: Duration = CONNECT_TIMEOUT.saturating_mul(2);

/// How often the API server refuses an optional kind before it is done without: with the pauses between, some seconds.
const REFUSALS: u32 = 4;

/// The receiving end of the channel is gone.
pub(super) struct Closed;

/// Watches one kind until the channel closes.
pub(super) async fn watch<K: Reduce>(
    api: Api<Arrived<K>>,
    config: watcher::Config,
    sender: &mpsc::Sender<SourceMessage>,
) -> Closed {
    let mut watch = OneKind::<K> {
        sender,
        list: None,
        listed: false,
        complete: false,
        refusals: 0,
        told: None,
        rejections: HashMap::new(),
        kind: std::marker::PhantomData,
    };
    let mut streamed = true;
    let mut backoff = DefaultBackoff::default();
    loop {
        let config = if streamed { config.clone().streaming_lists() } else { config.clone() };
        let mut stream = watcher::watcher(api.clone(), config).boxed();
        match watch.follow(&mut stream, streamed, &mut backoff).await {
            Ok(Restart::Paged) => {
                info!(kind = K::KIND.name(), "the API server does not stream lists: listing by pages");
                streamed = false;
            }
            Ok(Restart::Over) => debug!(kind = K::KIND.name(), "starting over with a new list"),
            Err(closed) => return closed,
        }
    }
}

/// Why a stream of events was given up.
enum Restart {
    /// Lists have to come by pages.
    Paged,
    /// The server would not resume.
    Over,
}

/// A list that is arriving.
#[derive(Default)]
struct List {
    objects: Vec<Change>,
    rejected: Vec<ObjectKey>,
    /// Objects with something to be told about them.
    faulty: HashSet<ObjectKey>,
}

struct OneKind<'a, K> {
    sender: &'a mpsc::Sender<SourceMessage>,
    /// The list that is arriving.
    list: Option<List>,
    /// Whether a list was complete since the stream began.
    listed: bool,
    /// Whether a list was told, ever.
    complete: bool,
    /// How often the API server refused the kind.
    refusals: u32,
    /// What was told about the watch last.
    told: Option<WatchState>,
    /// What was told about each object that is not wholly taken.
    rejections: HashMap<ObjectKey, Vec<Rejection>>,
    kind: std::marker::PhantomData<fn() -> K>,
}

type Events<K> = BoxStream<'static, watcher::Result<Event<Arrived<K>>>>;

impl<K: Reduce> OneKind<'_, K> {
    async fn follow(
        &mut self,
        stream: &mut Events<K>,
        streamed: bool,
        backoff: &mut DefaultBackoff,
    ) -> Result<Restart, Closed> {
        self.listed = false;
        loop {
            let failing = self.told.as_ref().is_some_and(|told| told.problem.is_some());
            let patience = match self.listed {
                false if streamed => Some(STREAM_SILENCE),
                true if failing => Some(RESUMED_AFTER),
                _ => None,
            };
            let next = match patience {
                Some(patience) => timeout(patience, stream.next()).await,
                None => Ok(stream.next().await),
            };
            match next {
                Ok(Some(Ok(event))) => self.event(event).await?,
                Ok(Some(Err(error))) => {
                    if streamed && !self.listed && refuses_streaming(&error) {
                        return Ok(Restart::Paged);
                    }
                    self.state(Some(cut(&with_causes(&error)))).await?;
                    if K::OPTIONAL && !self.complete && self.is_withheld(&error) {
                        info!(kind = K::KIND.name(), "the API server does not give these: going on without");
                        self.replaced(List::default()).await?;
                    }
                    // The backoff has no end.
                    sleep(backoff.next().unwrap_or(STREAM_SILENCE)).await;
                    if self.listed && refuses_to_resume(&error) {
                        return Ok(Restart::Over);
                    }
                }
                // A watcher's stream has no end.
                Ok(None) => return Ok(Restart::Over),
                Err(_) if self.listed => self.state(None).await?,
                Err(_) => return Ok(Restart::Paged),
            }
        }
    }

    async fn event(&mut self, event: Event<Arrived<K>>) -> Result<(), Closed> {
        match event {
            Event::Init => self.list = Some(List::default()),
            Event::InitApply(object) => {
                let Reduced { key, change, rejections } = object.reduced;
                let list = self.list.get_or_insert_default();
                if !rejections.is_empty() {
                    list.faulty.insert(key.clone());
                }
                match change {
                    Some(change) if change.exists() => list.objects.push(change),
                    // What is listed but not ours is gone like what is not listed.
                    Some(_) => {}
                    None => list.rejected.push(key.clone()),
                }
                self.reject(key, rejections).await?;
            }
            Event::InitDone => {
                let list = self.list.take().unwrap_or_default();
                self.rejections.retain(|key, _| list.faulty.contains(key));
                self.listed = true;
                self.state(None).await?;
                self.replaced(list).await?;
            }
            Event::Apply(object) => {
                let Reduced { key, change, rejections } = object.reduced;
                self.state(None).await?;
                self.reject(key, rejections).await?;
                if let Some(change) = change {
                    self.send(SourceMessage::Event(SourceEvent::Changed(change))).await?;
                }
            }
            // Whatever the object held: it is its name that is gone.
            Event::Delete(object) => {
                self.state(None).await?;
                let Reduced { key, .. } = object.reduced;
                self.rejections.remove(&key);
                self.send(SourceMessage::Event(SourceEvent::Changed(Change::gone(K::KIND, key)))).await?;
            }
        }
        Ok(())
    }

    /// Whether the API server has no objects of the kind (404), or keeps refusing them to us (403): one that has just
    /// started refuses everything for a moment, until it has read who may do what.
    fn is_withheld(&mut self, error: &watcher::Error) -> bool {
        match answered(error) {
            Some(404) => true,
            Some(403) => {
                self.refusals += 1;
                self.refusals >= REFUSALS
            }
            _ => false,
        }
    }

    /// Tells a list.
    async fn replaced(&mut self, List { objects, rejected, faulty: _ }: List) -> Result<(), Closed> {
        self.complete = true;
        self.send(SourceMessage::Event(SourceEvent::Replaced { kind: K::KIND, objects, rejected })).await
    }

    /// Tells the state of the watch, if it is not the one that was told last.
    async fn state(&mut self, problem: Option<String>) -> Result<(), Closed> {
        let state = WatchState { watch: Watch::Api(K::KIND), problem };
        if self.told.as_ref() == Some(&state) {
            return Ok(());
        }
        self.told = Some(state.clone());
        self.send(SourceMessage::State(state)).await
    }

    /// Tells what is wrong with an object, if it is not what was told last: an object may change every second.
    async fn reject(&mut self, key: ObjectKey, rejections: Vec<Rejection>) -> Result<(), Closed> {
        if rejections.is_empty() {
            self.rejections.remove(&key);
            return Ok(());
        }
        if self.rejections.get(&key) == Some(&rejections) {
            return Ok(());
        }
        self.rejections.insert(key, rejections.clone());
        for rejection in rejections {
            self.send(SourceMessage::Rejected(rejection)).await?;
        }
        Ok(())
    }

    async fn send(&self, message: SourceMessage) -> Result<(), Closed> {
        self.sender.send(message).await.map_err(|_| Closed)
    }
}

/// The status with which the API server answered, if it did.
fn answered(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Whether the API server refused `sendInitialEvents`: it answers 422, as client-go expects too, or 400.
fn refuses_streaming(error: &watcher::Error) -> bool {
    matches!(answered(error), Some(400 | 422))
}

/// Whether asking again to resume at the same place is of no use: the server answered, and neither with overload
/// (429, 5xx) nor with a lack of rights (401, 403), which a new list would not have either.
fn refuses_to_resume(error: &watcher::Error) -> bool {
    answered(error).is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 403 | 429))
}
