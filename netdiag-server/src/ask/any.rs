//! A source chosen at run time.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, Need, Reading};

use super::{BundleSource, LiveSource, Source, SourceError};
use crate::evidence::Cluster;
use crate::kube::Kept;

/// What the command line or a tool was pointed at.
pub enum AnySource {
    Bundle(BundleSource),
    Live(Box<LiveSource>),
}

impl Source for AnySource {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        match self {
            Self::Bundle(source) => source.cluster().await,
            Self::Live(source) => source.cluster().await,
        }
    }

    async fn gather(&self, needs: Vec<Need>, deadline: Instant) -> Vec<(Need, Reading<Observation>)> {
        match self {
            Self::Bundle(source) => source.gather(needs, deadline).await,
            Self::Live(source) => source.gather(needs, deadline).await,
        }
    }

    fn now(&self) -> Timestamp {
        match self {
            Self::Bundle(source) => source.now(),
            Self::Live(source) => source.now(),
        }
    }

    fn is_live(&self) -> bool {
        match self {
            Self::Bundle(source) => source.is_live(),
            Self::Live(source) => source.is_live(),
        }
    }

    async fn certificate(&self, namespace: &str, name: &str) -> Result<Option<Kept>, Gap> {
        match self {
            Self::Bundle(source) => source.certificate(namespace, name).await,
            Self::Live(source) => source.certificate(namespace, name).await,
        }
    }

    fn instance(&self, node: &str) -> Option<String> {
        match self {
            Self::Bundle(source) => source.instance(node),
            Self::Live(source) => source.instance(node),
        }
    }

    fn restarts(&self, node: &str) -> u64 {
        match self {
            Self::Bundle(source) => source.restarts(node),
            Self::Live(source) => source.restarts(node),
        }
    }
}
