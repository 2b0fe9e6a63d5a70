//! What makes pods: Deployments, ReplicaSets, DaemonSets, StatefulSets.

use serde::Deserialize;

use super::{LabelSelector, Meta, ObjectCondition, ObjectRef};

/// Deployment, ReplicaSet, DaemonSet or StatefulSet, as far as it explains missing pods.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Workload {
    /// Filled by the source, since a list's items carry no kind.
    #[serde(default)]
    pub kind: String,
    pub metadata: Meta,
    #[serde(default)]
    pub spec: WorkloadSpec,
    #[serde(default)]
    pub status: WorkloadStatus,
}

impl Workload {
    /// A revision that a Deployment keeps, be it the current or a past one: what its pods will carry is in the Deployment.
    pub fn is_revision(&self) -> bool {
        self.metadata.controller.as_ref().is_some_and(|(kind, _)| kind == "Deployment")
    }

    pub fn reference(&self) -> ObjectRef {
        ObjectRef::new(&self.kind, &self.metadata)
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSpec {
    /// Absent for DaemonSets.
    pub replicas: Option<u32>,
    pub selector: LabelSelector,
    pub template: PodTemplate,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PodTemplate {
    pub metadata: Meta,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    pub replicas: u32,
    pub ready_replicas: u32,
    /// DaemonSets only.
    pub desired_number_scheduled: u32,
    pub number_ready: u32,
    pub conditions: Vec<ObjectCondition>,
}
