//! The clients of a class: what each asks for, and whose turn it is. Pure.
//!
//! A client asks for as many things as its waiting steps have demands. When it is charged it moves back in the order of each
//! of them, which is done when it comes up there: what is listed is never later than its turn.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::lanes::{Ask, CREDIT_MOST, Head, LaneKey, Order, VirtualMicros};

#[derive(Debug, Default)]
pub(super) struct ClassFlows {
    pub(super) finish: VirtualMicros,
    /// The virtual time at which its next step starts.
    pub(super) turn: VirtualMicros,
    /// Virtual time of the clients in it.
    now: VirtualMicros,
    clients: HashMap<Arc<str>, ClientFlow>,
    /// Clients with waiting steps.
    waiting: usize,
    /// The clients that ask for each thing, by their turns or earlier: thousands of clients whose ask is blocked are passed
    /// over at once.
    by_ask: FxHashMap<Ask, BTreeSet<(VirtualMicros, Arc<str>)>>,
    /// How often an ask came that nobody had.
    asks_come: u64,
    /// Clients without waiting steps that were kept when they were looked through last.
    kept_idle: usize,
}

#[derive(Debug, Default)]
struct ClientFlow {
    finish: VirtualMicros,
    turn: VirtualMicros,
    /// Its lanes by the order of their heads.
    heads: BTreeMap<Order, LaneKey>,
    /// Where it is listed for each ask, and its first step of it.
    listed: FxHashMap<Ask, Listed>,
}

#[derive(Debug)]
struct Listed {
    /// Its turn, or earlier.
    turn: VirtualMicros,
    head: Order,
}

impl ClassFlows {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// What its clients ask for.
    pub(super) fn asks(&self) -> impl Iterator<Item = Ask> + '_ {
        self.by_ask.keys().copied()
    }

    /// Grows whenever an ask comes that nobody had.
    pub(super) fn asks_come(&self) -> u64 {
        self.asks_come
    }

    /// How many clients anything is remembered of.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// The first step of a lane is another one.
    pub(super) fn set_head(&mut self, key: &LaneKey, before: Option<Order>, after: Option<Order>) {
        let now = self.now;
        let flow = self.clients.entry(Arc::clone(&key.client)).or_default();
        let was_waiting = !flow.heads.is_empty();
        if let Some(before) = before {
            flow.heads.remove(&before);
        }
        if let Some(after) = after {
            flow.heads.insert(after, key.clone());
        }
        let waits = !flow.heads.is_empty();
        if !was_waiting && waits {
            // One that comes back starts now; a later correction counts from there.
            flow.finish = flow.finish.max(now);
            flow.turn = flow.finish;
        }
        let ask = (key.demand, key.bound_to);
        match (before, after) {
            (None, Some(head)) => {
                let asks_come = &mut self.asks_come;
                let clients = self.by_ask.entry(ask).or_insert_with(|| {
                    *asks_come += 1;
                    BTreeSet::new()
                });
                clients.insert((flow.turn, Arc::clone(&key.client)));
                let turn = flow.turn;
                flow.listed.insert(ask, Listed { turn, head });
            }
            (Some(_), None) => {
                let listed = flow.listed.remove(&ask);
                if let Some((clients, listed)) = self.by_ask.get_mut(&ask).zip(listed) {
                    clients.remove(&(listed.turn, Arc::clone(&key.client)));
                    if clients.is_empty() {
                        self.by_ask.remove(&ask);
                    }
                }
            }
            (Some(_), Some(head)) => {
                if let Some(listed) = flow.listed.get_mut(&ask) {
                    listed.head = head;
                }
            }
            (None, None) => {}
        }
        match (was_waiting, waits) {
            (false, true) => self.waiting += 1,
            (true, false) => {
                self.waiting -= 1;
                // What it has used beyond the present is remembered as long as it counts.
                if flow.finish <= now {
                    self.clients.remove(&key.client);
                } else {
                    self.forget_idle();
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Clients without waiting steps whose virtual time has passed need no entry: they would start at the present.
    fn forget_idle(&mut self) {
        const KEPT_IDLE_LEAST: usize = 1024;
        const KEPT_IDLE_MOST: usize = 2048;
        // Looked through when there are twice as many as last time, so that each costs a constant.
        let idle = self.clients.len() - self.waiting;
        if idle > KEPT_IDLE_LEAST.max(2 * self.kept_idle) {
            let now = self.now;
            self.clients
                .retain(|_, flow| !flow.heads.is_empty() || flow.finish > now);
            self.kept_idle = self.clients.len() - self.waiting;
        }
        if self.clients.len() > self.waiting + KEPT_IDLE_MOST {
            // Too many are ahead of the present: those that are the least.
            let idle = self.clients.iter().filter(|(_, flow)| flow.heads.is_empty());
            let mut finishes: Vec<VirtualMicros> = idle.map(|(_, flow)| flow.finish).collect();
            finishes.sort_unstable();
            let least = finishes.get(finishes.len() / 2).copied().unwrap_or(0);
            self.clients
                .retain(|_, flow| !flow.heads.is_empty() || flow.finish > least);
        }
    }

    /// The step whose turn it is, of those with one of these asks.
    pub(super) fn next_of(&mut self, asks: &FxHashSet<Ask>) -> Option<Head> {
        for ask in asks {
            self.list_first_at_its_turn(*ask);
        }
        let firsts = asks.iter().filter_map(|ask| self.by_ask.get(ask)?.first());
        let (_, client) = firsts.min()?;
        let flow = self.clients.get(client)?;
        let heads = asks.iter().filter_map(|ask| flow.listed.get(ask));
        let first = heads.map(|listed| listed.head).min()?;
        let lane = flow.heads.get(&first)?.clone();
        Some(Head { step: first.1, lane })
    }

    /// Moves back those that were charged since they were listed, until the first one is where its turn is.
    fn list_first_at_its_turn(&mut self, ask: Ask) {
        let Some(clients) = self.by_ask.get_mut(&ask) else {
            return;
        };
        while let Some((listed, client)) = clients.first() {
            let Some(flow) = self.clients.get_mut(client).filter(|flow| flow.turn > *listed) else {
                return;
            };
            let Some((_, client)) = clients.pop_first() else {
                return;
            };
            if let Some(listed) = flow.listed.get_mut(&ask) {
                listed.turn = flow.turn;
            }
            clients.insert((flow.turn, client));
        }
    }

    pub(super) fn charge(&mut self, client: &Arc<str>, device_micros: u64) {
        let now = self.now;
        let flow = self.clients.entry(Arc::clone(client)).or_default();
        let start = flow.turn.max(now.saturating_sub(CREDIT_MOST));
        flow.finish = start.saturating_add(device_micros);
        let finish = flow.finish;
        self.now = now.max(start);
        self.set_turn(client, finish);
    }

    /// Moves the end of what a client was charged with.
    pub(super) fn correct(&mut self, client: &str, shift: impl Fn(VirtualMicros) -> VirtualMicros) {
        let Some(client) = self
            .clients
            .get_key_value(client)
            .map(|(client, _)| Arc::clone(client))
        else {
            return;
        };
        if let Some(flow) = self.clients.get_mut(&client) {
            flow.finish = shift(flow.finish);
            let turn = if flow.heads.is_empty() {
                flow.finish.max(self.now)
            } else {
                flow.finish
            };
            self.set_turn(&client, turn);
        }
    }

    /// Gives a client another turn. Where it is listed after it, it is moved at once.
    fn set_turn(&mut self, client: &Arc<str>, turn: VirtualMicros) {
        let Some(flow) = self.clients.get_mut(client) else {
            return;
        };
        let is_earlier = turn < flow.turn;
        flow.turn = turn;
        if !is_earlier {
            return;
        }
        for (ask, listed) in flow.listed.iter_mut().filter(|(_, listed)| listed.turn > turn) {
            if let Some(clients) = self.by_ask.get_mut(ask) {
                clients.remove(&(listed.turn, Arc::clone(client)));
                clients.insert((turn, Arc::clone(client)));
                listed.turn = turn;
            }
        }
    }
}
