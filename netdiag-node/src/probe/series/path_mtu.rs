//! The largest packet that reaches a target with DF, to the byte, and who keeps larger ones from it: the device, somebody who
//! says so, or a black hole.
//!
//! It is the way there that is measured: a target fragments its own answers, or is told so on the way back. A "too big" that
//! arrives also becomes the kernel's remembered path MTU, as any packet's would.

mod asker;
mod hole;
mod sizes;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::path::SizeStep;
use netdiag_common::observation::series::{
    FailureClass, IcmpError, PathMtuProbe, PathMtuReport, ProbeFailure, ProbeReport, ProbeStage,
};

use super::context::{Context, Ending, local, silence};
use super::flow::Flow;
use asker::{Asker, Outcome};
use sizes::Sizes;

pub(super) async fn attempt(context: &Context, probe: &PathMtuProbe, within: Duration) -> Ending {
    if let Err(failure) = context.allow(probe.to.ip()) {
        return Ending::failed(None, Some(probe.to), failure);
    }
    let over = Instant::now() + within;
    let opened = async {
        let mut flow = Flow::open(context, probe.to, probe.source_port).await?;
        let unready = |error| local(ProbeStage::Socket, &error);
        flow.probe_mtu().map_err(unready)?;
        let device = flow.device_mtu(0).map_err(|error| super::context::of_errno(ProbeStage::Send, &error))?;
        Ok((flow, device))
    };
    let (flow, device_mtu) = match opened.await {
        Ok(opened) => opened,
        Err(failure) => return Ending::failed(None, Some(probe.to), failure),
    };
    let source = flow.source();
    let mut search = Search::new(Asker::new(context, flow, probe.tries.max(1), within), probe.from_bytes, device_mtu);
    let found = match tokio::time::timeout_at(over.into(), search.run()).await {
        Ok(found) => found,
        Err(_) => Err(search.time_is_over(within)),
    };
    let failure = match found {
        Err(failure) => Some(failure),
        Ok(()) => search.black_hole().then(|| search.hole_failure(probe.to)),
    };
    Ending {
        source: Some(source),
        to: Some(probe.to),
        failure,
        report: ProbeReport::PathMtu(search.report()),
        ..Ending::default()
    }
}

/// What is known so far.
struct Search<'a> {
    asker: Asker<'a>,
    /// The largest that is asked for: bounded by the device and by the question.
    top: u16,
    smallest: u16,
    device_mtu: Option<u32>,
    /// More than the device takes was asked for.
    beyond_device: Option<u16>,
    hole: bool,
    last_hop: Option<IpAddr>,
}

impl<'a> Search<'a> {
    fn new(asker: Asker<'a>, from_bytes: Option<u16>, device_mtu: Option<u32>) -> Self {
        let device = device_mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(u16::MAX);
        let smallest = asker.smallest();
        let wanted = from_bytes.unwrap_or(device).max(smallest);
        let beyond_device = (wanted > device).then_some(wanted);
        Self { top: wanted.min(device), smallest, asker, device_mtu, beyond_device, hole: false, last_hop: None }
    }

    async fn run(&mut self) -> Result<(), ProbeFailure> {
        if self.top < self.smallest {
            return Err(self.device_too_small());
        }
        if self.is_through(self.top).await? {
            return Ok(());
        }
        if !self.is_through(self.smallest).await? {
            return Err(self.nothing_at_all());
        }
        loop {
            while let Some(bytes) = self.sizes().next(self.top) {
                self.is_through(bytes).await?;
            }
            let Some((fits, lost)) = self.sizes().silent_edge(self.top) else { return Ok(()) };
            match hole::confirm(&mut self.asker, fits, lost).await? {
                hole::Edge::Moved => {}
                hole::Edge::Doubtful { lost_small, sent_small } => {
                    let why = format!(
                        "packets of {lost} bytes are lost, and so are {lost_small} of {sent_small} of those that fit: plain \
                         loss is not excluded; ask again with more tries"
                    );
                    return Err(silence(ProbeStage::Answer, why));
                }
                hole::Edge::Hole => {
                    self.hole = true;
                    self.last_hop = hole::last_hop(&mut self.asker, fits, lost).await?;
                    return Ok(());
                }
            }
        }
    }

    /// Whether one of the tries gets through. The first that says something decides.
    async fn is_through(&mut self, bytes: u16) -> Result<bool, ProbeFailure> {
        for _ in 0..self.asker.tries() {
            match self.asker.ask(bytes, None).await? {
                Outcome::Answered => return Ok(true),
                Outcome::Unreachable { from, error } => return Err(unreachable(from, error)),
                Outcome::TooBig | Outcome::Local | Outcome::Expired { .. } => return Ok(false),
                Outcome::Silent => {}
            }
        }
        // An answer to an earlier try may have come late.
        Ok(self.sizes().fits(bytes))
    }

    fn sizes(&self) -> &Sizes {
        self.asker.sizes()
    }

    fn black_hole(&self) -> bool {
        self.hole
    }

    fn report(&self) -> PathMtuReport {
        let said = self.sizes().said();
        let mut steps: Vec<SizeStep> = self.sizes().steps(self.device_mtu);
        if let (Some(bytes), Some(mtu)) = (self.beyond_device, self.device_mtu) {
            let words = format!("local: message too long (device MTU {mtu})");
            steps.insert(0, SizeStep { bytes: bytes.into(), sent: 0, answered: 0, words });
        }
        PathMtuReport {
            path_mtu: self.sizes().largest_that_fits().map(u32::from),
            device_mtu: self.device_mtu,
            black_hole: self.hole,
            said_by: said.map(|(from, _)| *from),
            said: said.map(|(_, error)| error.clone()),
            last_hop: self.last_hop,
            steps,
        }
    }

    fn hole_failure(&self, to: SocketAddr) -> ProbeFailure {
        let fits = self.sizes().largest_that_fits().unwrap_or_default();
        let why = format!("packets to {} above {fits} bytes vanish and nobody says so", to.ip());
        ProbeFailure { class: FailureClass::TooBig, ..silence(ProbeStage::Answer, why) }
    }

    fn nothing_at_all(&self) -> ProbeFailure {
        let why = format!("no answer to packets of {} and of {} bytes", self.smallest, self.top);
        silence(ProbeStage::Answer, why)
    }

    fn device_too_small(&self) -> ProbeFailure {
        let why = format!("the device's MTU, {}, is below the {} bytes of a probe", self.top, self.smallest);
        ProbeFailure { class: FailureClass::Local, ..silence(ProbeStage::Send, why) }
    }

    fn time_is_over(&self, within: Duration) -> ProbeFailure {
        let known = match self.sizes().largest_that_fits() {
            Some(fits) => format!("{fits} bytes get through, what is above is not decided"),
            None => "nothing was answered".to_owned(),
        };
        let why = format!("the {} ms were over: {known}; ask with a longer timeout or fewer tries", within.as_millis());
        ProbeFailure { class: FailureClass::Limit, ..silence(ProbeStage::Answer, why) }
    }
}

/// Of any size: the target is not to be reached, whatever fits.
fn unreachable(from: IpAddr, error: IcmpError) -> ProbeFailure {
    let why = format!("{from} says {}", error.words);
    let class = FailureClass::Unreachable;
    ProbeFailure { stage: ProbeStage::Answer, class, errno: None, said_by: Some(from), icmp: Some(error), why }
}
