//! The queue: lanes of steps with equal demands, and whose turn it is. Pure.
//!
//! Fairness is start-time fair queueing (Goyal, Vin and Cheng, 1996) on two levels: between classes by their weights, and
//! within a class between clients, all equal. Each flow has a virtual time that grows by the device time its steps are
//! estimated to take, divided by its weight; the flow with the least goes next. A flow that comes back after it was empty
//! starts at the present virtual time, so that nobody saves up turns. The class `critical` goes before all others.
//! Within a client the larger priority goes first, then the earlier arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::WorkerId;
use super::demand::DemandId;
use crate::processing::job::Class;
use crate::processing::job::StepKey;

/// Virtual time: microseconds of device time at weight 1.
type VirtualMicros = u64;

/// The most that a flow may lag behind the present while its steps are blocked: it catches up by so much and no more, so
/// that its return does not hold up everybody else.
const CREDIT_MOST: VirtualMicros = 60_000_000;

/// Steps of one client and class that ask for the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneKey {
    pub(crate) class: Class,
    pub(crate) client: Arc<str>,
    pub(crate) demand: DemandId,
    /// The worker that holds the suspended work of its steps; `None` where any worker will do.
    pub(crate) bound_to: Option<WorkerId>,
}

/// The order within a client: larger priority, then earlier arrival.
type Order = (Reverse<i32>, StepKey);

/// What a lane may be asked for: its demand, and where its work lies.
pub(crate) type Ask = (DemandId, Option<WorkerId>);

/// Every waiting step.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: HashMap<LaneKey, BTreeSet<Order>>,
    classes: [ClassFlows; Class::COUNT],
    /// Virtual time of the classes.
    now: VirtualMicros,
    waiting: usize,
    /// Steps of each demand.
    by_demand: FxHashMap<DemandId, Waiting>,
}

/// The steps of a demand.
#[derive(Debug)]
struct Waiting {
    steps: usize,
    /// The one that came last: an example of them.
    last: StepKey,
}

#[derive(Debug, Default)]
struct ClassFlows {
    finish: VirtualMicros,
    /// The virtual time at which its next step starts.
    turn: VirtualMicros,
    /// Virtual time of the clients in it.
    now: VirtualMicros,
    /// Clients with waiting steps, the next one first.
    turns: BTreeSet<(VirtualMicros, Arc<str>)>,
    /// The same by what they ask for: thousands of clients whose ask is blocked are passed over at once.
    by_ask: FxHashMap<Ask, BTreeSet<(VirtualMicros, Arc<str>)>>,
    clients: HashMap<Arc<str>, ClientFlow>,
    /// Clients without waiting steps that were kept when they were looked through last.
    kept_idle: usize,
}

#[derive(Debug, Default)]
struct ClientFlow {
    finish: VirtualMicros,
    /// Its key in `turns`.
    turn: VirtualMicros,
    /// Its lanes by the order of their heads.
    heads: BTreeMap<Order, LaneKey>,
}

/// The step whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) step: StepKey,
    pub(crate) lane: LaneKey,
}

impl Lanes {
    /// Adds a step to its lane.
    pub(crate) fn push(&mut self, key: &LaneKey, priority: i32, step: StepKey) {
        let order = (Reverse(priority), step);
        let lane = self.lanes.entry(key.clone()).or_default();
        let head_before = lane.first().copied();
        if !lane.insert(order) {
            return;
        }
        self.waiting += 1;
        let waiting = self.by_demand.entry(key.demand);
        let waiting = waiting.or_insert(Waiting { steps: 0, last: step });
        waiting.steps += 1;
        waiting.last = waiting.last.max(step);
        if head_before.is_none_or(|head| order < head) {
            self.set_head(key, head_before, Some(order));
        }
    }

    /// Takes a step out of its lane; says whether it was there.
    pub(crate) fn remove(&mut self, key: &LaneKey, priority: i32, step: StepKey) -> bool {
        let order = (Reverse(priority), step);
        let Some(lane) = self.lanes.get_mut(key) else {
            return false;
        };
        let head_before = lane.first().copied();
        if !lane.remove(&order) {
            return false;
        }
        self.waiting -= 1;
        if let Some(waiting) = self.by_demand.get_mut(&key.demand) {
            waiting.steps -= 1;
            if waiting.last == step
                && let Some((_, other)) = lane.last()
            {
                waiting.last = *other;
            }
            if waiting.steps == 0 {
                self.by_demand.remove(&key.demand);
            }
        }
        let head_after = lane.first().copied();
        if head_after.is_none() {
            self.lanes.remove(key);
        }
        if head_before != head_after {
            self.set_head(key, head_before, head_after);
        }
        true
    }

    /// The step whose turn it is, of those lanes whose ask is not blocked.
    pub(crate) fn next(&self, is_blocked: impl Fn(Ask) -> bool) -> Option<Head> {
        self.next_in_class(|_, ask| is_blocked(ask))
    }

    /// The same where an ask may be blocked for some classes.
    pub(crate) fn next_in_class(&self, is_blocked: impl Fn(Class, Ask) -> bool) -> Option<Head> {
        let mut order: Vec<(VirtualMicros, usize)> = self
            .classes
            .iter()
            .enumerate()
            .filter(|(_, class)| !class.turns.is_empty())
            .map(|(index, class)| match Class::ALL.get(index) {
                Some(Class::Critical) => (0, index),
                _ => (class.turn.saturating_add(1), index),
            })
            .collect();
        order.sort_unstable();
        order
            .into_iter()
            .filter_map(|(_, index)| self.classes.get(index).zip(Class::ALL.get(index)))
            .find_map(|(flows, class)| flows.next(|ask| is_blocked(*class, ask)))
    }

    /// Charges a lane's client and class with the device time that its step will take.
    pub(crate) fn charge(&mut self, key: &LaneKey, device_micros: u64) {
        let Some(class) = self.classes.get_mut(key.class as usize) else {
            return;
        };
        if key.class != Class::Critical {
            let start = class.turn.max(self.now.saturating_sub(CREDIT_MOST));
            self.now = self.now.max(start);
            class.finish = start.saturating_add(device_micros.saturating_mul(4) / key.class.quarter_weight());
            class.turn = class.finish;
        }
        class.charge(&key.client, device_micros);
    }

    /// Corrects an earlier charge by what the step really took.
    pub(crate) fn correct(&mut self, class: Class, client: &str, charged_micros: u64, took_micros: u64) {
        let Some(flows) = self.classes.get_mut(class as usize) else {
            return;
        };
        let shift = |finish: VirtualMicros, weight: u64| {
            let (charged, took) = (
                charged_micros.saturating_mul(4) / weight,
                took_micros.saturating_mul(4) / weight,
            );
            finish.saturating_add(took).saturating_sub(charged)
        };
        if class != Class::Critical {
            flows.finish = shift(flows.finish, class.quarter_weight());
            // Not `finish`: what it had before it was idle is not its to save up.
            flows.turn = shift(flows.turn, class.quarter_weight());
        }
        let now = flows.now;
        let known = flows.clients.get_key_value(client);
        let Some(client) = known.map(|(client, _)| Arc::clone(client)) else {
            return;
        };
        if let Some(flow) = flows.clients.get_mut(&client) {
            flow.finish = shift(flow.finish, 4);
            let turn = if flow.heads.is_empty() {
                flow.finish.max(now)
            } else {
                flow.finish
            };
            flows.set_turn(&client, turn);
        }
    }

    /// How many steps wait that have a demand.
    pub(crate) fn waiting_with(&self, demand: DemandId) -> usize {
        self.by_demand.get(&demand).map_or(0, |waiting| waiting.steps)
    }

    /// The demands of all waiting steps, with how many have them and one of these.
    pub(super) fn demands(&self) -> impl Iterator<Item = (DemandId, usize, StepKey)> + '_ {
        self.by_demand
            .iter()
            .map(|(demand, waiting)| (*demand, waiting.steps, waiting.last))
    }

    /// Whether a step of a class waits.
    pub(crate) fn has(&self, class: Class) -> bool {
        let class = self.classes.get(class as usize);
        class.is_some_and(|class| !class.turns.is_empty())
    }

    /// How many steps wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// The rank of a step, from 1: waiting steps of its class with a larger priority or an earlier arrival go before it.
    pub(crate) fn rank(&self, class: Class, priority: i32, step: StepKey) -> usize {
        let order = (Reverse(priority), step);
        let before = self
            .lanes
            .iter()
            .filter(|(key, _)| key.class <= class)
            .map(|(key, lane)| {
                if key.class < class {
                    lane.len()
                } else {
                    lane.range(..order).count()
                }
            });
        before.sum::<usize>() + 1
    }

    /// Every waiting step in the order of [`rank`](Self::rank).
    pub(crate) fn ranked(&self) -> Vec<(Class, Reverse<i32>, StepKey)> {
        let mut all: Vec<_> = self
            .lanes
            .iter()
            .flat_map(|(key, lane)| lane.iter().map(|(priority, step)| (key.class, *priority, *step)))
            .collect();
        all.sort_unstable();
        all
    }

    /// How many clients anything is remembered of.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> usize {
        self.classes.iter().map(|class| class.clients.len()).sum()
    }

    fn set_head(&mut self, key: &LaneKey, before: Option<Order>, after: Option<Order>) {
        let class_now = self.now;
        let Some(class) = self.classes.get_mut(key.class as usize) else {
            return;
        };
        let was_empty = class.turns.is_empty();
        class.set_head(key, before, after);
        if was_empty && !class.turns.is_empty() {
            // A class that comes back starts now; a later correction counts from there.
            class.finish = class.finish.max(class_now);
            class.turn = class.finish;
        }
    }
}

impl ClassFlows {
    fn set_head(&mut self, key: &LaneKey, before: Option<Order>, after: Option<Order>) {
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
        let (ask, turn) = ((key.demand, key.bound_to), (flow.turn, Arc::clone(&key.client)));
        match (before, after) {
            (None, Some(_)) => {
                self.by_ask.entry(ask).or_default().insert(turn);
            }
            (Some(_), None) => {
                if let Some(clients) = self.by_ask.get_mut(&ask) {
                    clients.remove(&turn);
                    if clients.is_empty() {
                        self.by_ask.remove(&ask);
                    }
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        match (was_waiting, waits) {
            (false, true) => {
                self.turns.insert((flow.turn, Arc::clone(&key.client)));
            }
            (true, false) => {
                self.turns.remove(&(flow.turn, Arc::clone(&key.client)));
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
        let idle = self.clients.len() - self.turns.len();
        if idle > KEPT_IDLE_LEAST.max(2 * self.kept_idle) {
            let now = self.now;
            self.clients
                .retain(|_, flow| !flow.heads.is_empty() || flow.finish > now);
            self.kept_idle = self.clients.len() - self.turns.len();
        }
        if self.clients.len() > self.turns.len() + KEPT_IDLE_MOST {
            // Too many are ahead of the present: those that are the least.
            let idle = self.clients.iter().filter(|(_, flow)| flow.heads.is_empty());
            let mut finishes: Vec<VirtualMicros> = idle.map(|(_, flow)| flow.finish).collect();
            finishes.sort_unstable();
            let least = finishes.get(finishes.len() / 2).copied().unwrap_or(0);
            self.clients
                .retain(|_, flow| !flow.heads.is_empty() || flow.finish > least);
        }
    }

    fn next(&self, is_blocked: impl Fn(Ask) -> bool) -> Option<Head> {
        let asks = self.by_ask.iter().filter(|(ask, _)| !is_blocked(**ask));
        let (_, client) = asks.filter_map(|(_, clients)| clients.first()).min()?;
        let mut heads = self.clients.get(client)?.heads.iter();
        heads.find_map(|((_, step), lane)| {
            (!is_blocked((lane.demand, lane.bound_to))).then(|| Head {
                step: *step,
                lane: lane.clone(),
            })
        })
    }

    fn charge(&mut self, client: &Arc<str>, device_micros: u64) {
        let now = self.now;
        let flow = self.clients.entry(Arc::clone(client)).or_default();
        let start = flow.turn.max(now.saturating_sub(CREDIT_MOST));
        flow.finish = start.saturating_add(device_micros);
        let finish = flow.finish;
        self.now = now.max(start);
        self.set_turn(client, finish);
    }

    /// Gives a client another place among those that wait, if it waits.
    fn set_turn(&mut self, client: &Arc<str>, turn: VirtualMicros) {
        let Some(flow) = self.clients.get_mut(client) else {
            return;
        };
        let before = (std::mem::replace(&mut flow.turn, turn), Arc::clone(client));
        if !self.turns.remove(&before) {
            return;
        }
        self.turns.insert((turn, Arc::clone(client)));
        for lane in flow.heads.values() {
            if let Some(clients) = self.by_ask.get_mut(&(lane.demand, lane.bound_to)) {
                clients.remove(&before);
                clients.insert((turn, Arc::clone(client)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: &str, demand: DemandId) -> LaneKey {
        LaneKey {
            class: Class::Interactive,
            client: client.into(),
            demand,
            bound_to: None,
        }
    }

    fn next_client(lanes: &Lanes) -> Option<String> {
        lanes.next(|_| false).map(|head| head.lane.client.to_string())
    }

    #[test]
    fn a_correction_does_not_put_a_client_that_came_back_before_all_others() {
        let (mut lanes, demand) = (Lanes::default(), DemandId::none());
        let (busy, other) = (key("busy", demand), key("other", demand));
        for step in 0..9 {
            lanes.push(&busy, 0, StepKey(step));
        }
        // The busy client has had much; the other one comes for the first time, starts its only step, and comes back.
        for step in 0..8 {
            lanes.charge(&busy, 1_000_000);
            lanes.remove(&busy, 0, StepKey(step));
        }
        lanes.push(&other, 0, StepKey(20));
        lanes.charge(&other, 1_000_000);
        lanes.remove(&other, 0, StepKey(20));
        lanes.push(&other, 0, StepKey(21));
        lanes.correct(Class::Interactive, "other", 1_000_000, 900_000);
        assert_eq!(next_client(&lanes).as_deref(), Some("other"));
        lanes.charge(&other, 500_000);
        assert_eq!(next_client(&lanes).as_deref(), Some("busy"));
    }

    #[test]
    fn a_client_is_found_at_its_turn_behind_any_number_whose_ask_is_blocked() {
        let mut demands = super::super::Demands::default();
        let blocked = demands.intern(super::super::Demand::nothing());
        let open = demands.intern(super::super::Demand {
            exclusive: true,
            ..super::super::Demand::nothing()
        });
        let mut lanes = Lanes::default();
        for step in 0..100 {
            lanes.push(&key(&format!("client-{step}"), blocked), 0, StepKey(step));
        }
        lanes.push(&key("late", open), 0, StepKey(200));
        lanes.push(&key("client-7", open), 0, StepKey(201));
        lanes.charge(&key("client-7", open), 5);
        let head = lanes.next(|(demand, _)| demand == blocked);
        assert_eq!(head.map(|head| head.step), Some(StepKey(200)));
        lanes.remove(&key("late", open), 0, StepKey(200));
        let head = lanes.next(|(demand, _)| demand == blocked);
        assert_eq!(head.map(|head| head.step), Some(StepKey(201)));
        assert_eq!(lanes.next(|_| true), None);
    }
}
