//! What makes pods: Deployments, ReplicaSets, DaemonSets, StatefulSets.

use serde::Deserialize;

use super::{LabelSelector, Meta, ObjectCondition, ObjectRef, null_default};

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

    /// Without what is kept of DaemonSets alone: a large cluster has a handful of those, and 100 000 ReplicaSets.
    pub(crate) fn slim(mut self) -> Self {
        if self.kind != "DaemonSet" {
            self.spec.template.spec = None;
        }
        self
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
    /// DaemonSets only.
    pub spec: Option<Box<TemplateSpec>>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct TemplateSpec {
    #[serde(deserialize_with = "null_default")]
    pub containers: Vec<TemplateContainer>,
}

/// What a container is started with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct TemplateContainer {
    #[serde(deserialize_with = "null_default")]
    pub command: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub args: Vec<String>,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::evidence::{Cluster, parse};

    #[test]
    fn what_containers_are_started_with_is_kept_of_daemon_sets_alone() {
        for (kind, kept) in [("DaemonSet", true), ("Deployment", false), ("ReplicaSet", false), ("StatefulSet", false)]
        {
            let object = json!({"kind": kind, "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"template": {"spec": {"containers": [{"name": "web", "args": ["-v"]}]}}}});
            let (mut listed, mut read) = (Cluster::default(), Cluster::default());
            parse::add_json(&mut listed, kind, &object.to_string()).expect("an object");
            parse::add(&mut read, object).expect("an object");
            for cluster in [listed, read] {
                let workload = cluster.workloads.get("shop", &format!("{kind}/web")).expect("the workload");
                assert_eq!(workload.spec.template.spec.is_some(), kept, "{kind}");
            }
        }
    }
}
