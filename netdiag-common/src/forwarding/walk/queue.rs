//! Packets that rules give to programs (`nf_queue.c`, `nfnetlink_queue.c`, Linux 6.18).

use crate::forwarding::machine::{FOLLOWED_QUEUES, Result, Run, Stop};
use crate::forwarding::path::{Decision, End};

/// `nf_queue`: a packet that no program listens for is dropped, or goes on where its rule says so; only then this returns.
pub(super) fn given(run: &mut Run<'_>, number: u16, bypass: bool) -> Result<()> {
    let among = run.queues.take();
    if is_heard(run, number, among)? {
        return Err(Stop::End(End::Queued { by: run.place(), number, among }));
    }
    run.decisions.push(Decision::Unheard { hook: run.hook, queue: number, bypass });
    if bypass { Ok(()) } else { Err(Stop::End(End::Dropped { by: run.place() })) }
}

fn is_heard(run: &mut Run<'_>, number: u16, among: Option<(u16, u16)>) -> Result<bool> {
    let state = run.state;
    let listened = state.queues()?;
    let Some((first, last)) = among.filter(|(first, last)| last - first >= FOLLOWED_QUEUES) else {
        return Ok(listened.contains(&number));
    };
    let heard = listened.iter().filter(|queue| (first..=last).contains(*queue)).count();
    if heard == 0 || heard == usize::from(last - first) + 1 {
        return Ok(heard > 0);
    }
    Ok(run.decide(&format!("a program listens to that of the queues {first}-{last} which the packet is given to")))
}
