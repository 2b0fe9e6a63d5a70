//! Everything kept current by watches, for a server that answers many questions: listed once, then told of each change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::kube::core::WatchEvent;
use futures::StreamExt;
use http::Request;
use jiff::Timestamp;
use netdiag_common::{Gap, GapReason};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Access;
use super::error::RequestError;
use super::list::{self, End, PAGE_TIMEOUT};
use super::resource::{RESOURCES, Resource};
use crate::ask::SourceError;
use crate::evidence::Cluster;

/// The API server ends a watch after this time, and we start the next from where it ended. Short, because a watch whose
/// connection died in silence shows only by its missing end: when kube-proxy's rules vanish from the server's node, packets
/// of connections to the API's Service address are no longer translated, and neither side is told.
const WATCH_SECONDS: u64 = 20;
/// Nothing came, not even the end: the connection is dead.
const WATCH_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 3);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Long enough to spare an API server in trouble, short enough that its return shows while somebody waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The intended view, current while this value lives.
pub struct Warm {
    store: Arc<Store>,
    listed: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

struct Store {
    access: Access,
    state: Mutex<State>,
    /// How many resources were tried at least once.
    tried: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// Shared with the questions at hand: a change copies it only while one of them holds it.
    cluster: Arc<Cluster>,
    /// By resource: none after a list that worked.
    outcomes: BTreeMap<&'static str, Option<RequestError>>,
    /// Resources that were listed at least once, so that their objects are there even if old.
    had: Vec<&'static str>,
}

impl Warm {
    /// Starts to list and watch; ends when the value is dropped.
    pub fn start(access: Access) -> Self {
        let (tried, listed) = watch::channel(0);
        let store = Arc::new(Store { access, state: Mutex::default(), tried });
        let mut tasks = JoinSet::new();
        for resource in &RESOURCES {
            tasks.spawn(follow(store.clone(), resource));
        }
        Self { store, listed, _tasks: tasks }
    }

    /// The way to the API that is watched.
    pub fn access(&self) -> &Access {
        &self.store.access
    }

    /// Whether each resource was listed, or refused, once.
    pub fn is_ready(&self) -> bool {
        *self.listed.borrow() >= RESOURCES.len()
    }

    /// The objects now. Waits for the first lists; each of them ends by itself.
    pub async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        let mut listed = self.listed.clone();
        // It can only fail when the tasks are gone; what they left is judged then.
        let _ = listed.wait_for(|tried| *tried >= RESOURCES.len()).await;
        let state = self.store.state();
        match state.outcomes.values().flatten().next() {
            Some(error) if state.had.is_empty() => Err(error.of_source(&self.store.access)),
            _ => Ok(state.cluster.clone()),
        }
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        change(Arc::make_mut(&mut self.state().cluster));
    }

    fn listed(&self, resource: &'static Resource, objects: Cluster) {
        self.change(|cluster| {
            resource.replace(cluster, objects);
            cluster.name = list::name(&self.access, cluster);
        });
        if !self.state().had.contains(&resource.plural) {
            self.state().had.push(resource.plural);
        }
        self.ended(resource, None);
    }

    /// A resource that the cluster does not have is empty. One that was never listed, or whose right was taken away, is dark; one that was stays, and says how old it is.
    fn failed(&self, resource: &'static Resource, error: RequestError) {
        let had = self.state().had.contains(&resource.plural);
        if resource.is_absent(&error) {
            self.change(|cluster| resource.replace(cluster, Cluster::default()));
            self.ended(resource, None);
        } else if had && !matches!(error, RequestError::Forbidden(_)) {
            let what = format!("{} changes since {:.0}", resource.kind, now());
            let known = format!("{} changes since ", resource.kind);
            self.change(|cluster| {
                if !cluster.unread.iter().any(|gap| gap.what.starts_with(&known)) {
                    cluster.unread.push(stale(what, &error));
                }
            });
            self.ended(resource, None);
        } else {
            self.ended(resource, Some(error));
        }
    }

    fn ended(&self, resource: &'static Resource, outcome: Option<RequestError>) {
        let mut state = self.state();
        state.outcomes.insert(resource.plural, outcome);
        let tried = state.outcomes.len();
        // Several resources may share a kind: it is dark while one of them is.
        let mut sharing = RESOURCES.iter().filter(|other| other.goes_to == resource.goes_to);
        let gap = sharing.find_map(|other| {
            let error = state.outcomes.get(other.plural)?.as_ref()?;
            Some(other.gap(error))
        });
        resource.goes_to.set_gap(Arc::make_mut(&mut state.cluster), gap);
        drop(state);
        self.tried.send_replace(tried);
    }
}

#[expect(clippy::disallowed_methods, reason = "says since when a live source is blind")]
fn now() -> Timestamp {
    Timestamp::now()
}

fn stale(what: String, error: &RequestError) -> Gap {
    Gap {
        what,
        node: None,
        reason: GapReason::Failed,
        // The same for every resource, so that an answer says it once.
        why: format!("the API server stopped answering: {error}"),
        remedy: "see whether the API server is healthy; what it said last was judged".to_owned(),
    }
}

async fn follow(store: Arc<Store>, resource: &'static Resource) {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match list::list(&store.access, resource).await {
            Ok(listed) => {
                store.listed(resource, listed.objects);
                pause = FIRST_PAUSE;
                changes(&store, resource, listed.end).await
            }
            Err(error) => {
                store.failed(resource, error.clone());
                error
            }
        };
        tracing::debug!(resource = resource.plural, %error, "listing again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Applies changes until the objects must be listed again; says why.
async fn changes(store: &Store, resource: &Resource, listed: End) -> RequestError {
    let End { path, resource_version: mut from } = listed;
    loop {
        let query = if resource.query.is_empty() { String::new() } else { format!("&{}", resource.query) };
        let uri = format!(
            "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={from}{query}"
        );
        let request = match Request::get(uri).body(Vec::new()) {
            Ok(request) => request,
            Err(error) => return RequestError::Failed(error.to_string()),
        };
        let opening = store.access.client.request_events::<Value>(request);
        let events = match tokio::time::timeout(PAGE_TIMEOUT, opening).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return error.into(),
            Err(_) => return RequestError::TimedOut(PAGE_TIMEOUT),
        };
        let mut events = std::pin::pin!(events);
        loop {
            let event = match tokio::time::timeout(WATCH_SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return error.into(),
                Ok(None) => break,
                Err(_) => return RequestError::TimedOut(WATCH_SILENCE),
            };
            match apply(store, resource, event) {
                Ok(version) => from = version,
                Err(error) => return error,
            }
        }
    }
}

/// Returns the version to go on from.
fn apply(store: &Store, resource: &Resource, event: WatchEvent<Value>) -> Result<String, RequestError> {
    let object = match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            store.change(|cluster| list::add(cluster, resource, &object.to_string()));
            object
        }
        WatchEvent::Deleted(object) => {
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
            store.change(|cluster| resource.remove(cluster, namespace, name));
            object
        }
        WatchEvent::Bookmark(bookmark) => return Ok(bookmark.metadata.resource_version),
        WatchEvent::Error(status) => return Err(::kube::Error::Api(status).into()),
    };
    let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    version.map(str::to_owned).ok_or_else(|| RequestError::Failed("a watch event without a resourceVersion".to_owned()))
}
