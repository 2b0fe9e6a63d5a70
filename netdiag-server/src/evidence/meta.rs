//! What every Kubernetes object carries, kept small: identity, labels, owner, and when it last changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names one object everywhere: in subjects, proofs and trails.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub struct ObjectRef {
    /// The cluster's name, the same in every reference of one answer.
    pub cluster: String,
    /// `Pod`, `Service`, `Node`, …
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The node it lives on, where that matters; empty otherwise.
    pub node: String,
}

impl ObjectRef {
    pub fn new(kind: &str, meta: &Meta) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..Self::default()
        }
    }

    /// A node as a subject, by its name alone: agents and paths know no more.
    pub fn of_node(name: &str) -> Self {
        Self { kind: "Node".to_owned(), name: name.to_owned(), node: name.to_owned(), ..Self::default() }
    }

    pub fn on_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// Behind the others, unless it is one of them.
    pub fn add_once(self, to: &mut Vec<Self>) {
        if !to.iter().any(|known| known.same_object(&self)) {
            to.push(self);
        }
    }

    pub fn same_object(&self, other: &Self) -> bool {
        self.kind == other.kind && self.namespace == other.namespace && self.name == other.name
    }
}

/// `Service shop/checkout`, `Node n3`.
impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// `metadata`, slim.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "RawMeta")]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub labels: BTreeMap<String, String>,
    /// The controlling owner, as (kind, name).
    pub controller: Option<(String, String)>,
    /// The newest of managedFields' times and the creation time: since when the object is as it is.
    pub changed_at: Option<Timestamp>,
    pub deleted_at: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    labels: BTreeMap<String, String>,
    owner_references: Vec<RawOwner>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    managed_fields: Vec<RawManaged>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawOwner {
    kind: String,
    name: String,
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawManaged {
    time: Option<Timestamp>,
}

impl From<RawMeta> for Meta {
    fn from(raw: RawMeta) -> Self {
        let managed = raw.managed_fields.iter().filter_map(|field| field.time).max();
        Self {
            name: raw.name,
            namespace: raw.namespace,
            uid: raw.uid,
            resource_version: raw.resource_version,
            labels: raw.labels,
            controller: raw.owner_references.into_iter().find(|o| o.controller).map(|o| (o.kind, o.name)),
            changed_at: managed.max(raw.creation_timestamp),
            deleted_at: raw.deletion_timestamp,
        }
    }
}
