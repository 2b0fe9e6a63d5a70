//! A living cluster: what the API intends, and what the agents answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, Need, Reading};

use super::{Source, SourceError, secret_not_recorded};
use crate::evidence::Cluster;
use crate::kube::{self, Access, Kept, Warm};
use crate::nodes::Agents;
use crate::nodes::agents::{self, Dial};
use crate::nodes::failure::Failure;

/// Where the intended view comes from.
pub enum Intent {
    /// Listed anew for each question: the command line's way.
    Listed(Access),
    /// Kept current by watches: the server's way.
    Watched(Warm),
    /// Recorded objects over real nodes: a laboratory without an API server.
    Recorded(Arc<Cluster>),
}

/// Asks the world each time.
pub struct LiveSource {
    intent: Intent,
    agents: Option<Agents>,
    agent_port: u16,
    /// The objects of the question at hand: they say where its nodes are.
    last: Mutex<Arc<Cluster>>,
}

impl LiveSource {
    /// Without agents every node is a gap.
    pub fn new(intent: Intent, agents: Option<Agents>, agent_port: u16) -> Self {
        Self { intent, agents, agent_port, last: Mutex::default() }
    }

    /// Whether the objects are at hand.
    pub fn is_ready(&self) -> bool {
        match &self.intent {
            Intent::Watched(warm) => warm.is_ready(),
            Intent::Listed(_) | Intent::Recorded(_) => true,
        }
    }

    /// Of the agents on their nodes' addresses.
    pub fn agent_port(&self) -> u16 {
        self.agent_port
    }

    pub fn agents(&self) -> Option<&Agents> {
        self.agents.as_ref()
    }

    /// Where the agent of a node listens, as `cluster` says.
    pub(crate) fn dial(&self, cluster: &Cluster, node: &str) -> Dial {
        if let Some(gap) = cluster.nodes.gap() {
            return Err(Failure::NoAddress(format!("the address of node {node} is not known: {}", gap.why)));
        }
        let Some(object) = cluster.nodes.get("", node) else {
            return Err(Failure::NoAddress(format!("the API has no Node {node}, so its address is not known")));
        };
        match object.internal_ips().next() {
            Some(address) => Ok(SocketAddr::new(address, self.agent_port)),
            None => Err(Failure::NoAddress(format!("Node {node} has no address of type InternalIP"))),
        }
    }
}

impl Source for LiveSource {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        let cluster = match &self.intent {
            Intent::Listed(access) => Arc::new(kube::snapshot(access).await?),
            Intent::Watched(warm) => warm.cluster().await?,
            Intent::Recorded(cluster) => cluster.clone(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = cluster.clone();
        Ok(cluster)
    }

    async fn gather(&self, needs: Vec<Need>, deadline: Instant) -> Vec<(Need, Reading<Observation>)> {
        let cluster = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &self.agents {
            Some(agents) => agents.gather(needs, |node| self.dial(&cluster, node), deadline).await,
            None => agents::unavailable(needs, &Failure::NotAsked),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the live source is the clock of its answers")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn is_live(&self) -> bool {
        true
    }

    async fn certificate(&self, namespace: &str, name: &str) -> Result<Option<Kept>, Gap> {
        let access = match &self.intent {
            Intent::Listed(access) => access,
            Intent::Watched(warm) => warm.access(),
            Intent::Recorded(_) => return Err(secret_not_recorded(namespace, name)),
        };
        kube::certificate(access, namespace, name).await
    }

    fn instance(&self, node: &str) -> Option<String> {
        self.agents.as_ref()?.instance(node)
    }

    fn restarts(&self, node: &str) -> u64 {
        self.agents.as_ref().map_or(0, |agents| agents.restarts(node))
    }
}
