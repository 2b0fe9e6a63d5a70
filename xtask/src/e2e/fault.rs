//! One fault of a table of faults: made in a world that is well, looked at, and put back.

use anyhow::{Context, Result};

use super::case::Step;
use super::{client, world};
use crate::cluster::Cluster;

pub(super) struct Fault<'a> {
    /// Unique in its table.
    pub(super) name: &'a str,
    pub(super) inject: &'a [Step],
    pub(super) restore: &'a [Step],
}

impl Fault<'_> {
    /// What `look` found wrong under the fault, which is put back whatever was found.
    ///
    /// # Errors
    /// The world was not well before, or could not be put back: nothing that comes after would mean anything.
    pub(super) fn under(
        &self,
        cluster: &Cluster,
        look: impl FnOnce() -> Result<Option<String>>,
    ) -> Result<Option<String>> {
        client::is_well(cluster).with_context(|| format!("before {:?}", self.name))?;
        let told = world::inject(cluster, self.inject).and_then(|()| look());
        world::restore(cluster, self.restore).with_context(|| format!("after {:?}", self.name))?;
        let found = told.unwrap_or_else(|error| Some(format!("{error:#}")));
        println!("        {}  {}", if found.is_none() { "right" } else { "WRONG" }, self.name);
        Ok(found.map(|why| format!("{}: {why}", self.name)))
    }
}

/// Whose probes the tables mean when they name nobody.
pub(super) fn usual_client() -> String {
    world::CLIENT.to_owned()
}
