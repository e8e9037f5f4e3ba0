//! The queue: lanes of steps with equal demands, and whose turn it is. Pure.
//!
//! Fairness is start-time fair queueing (Goyal, Vin and Cheng, 1996) on two levels: between classes by their weights, and
//! within a class between clients, all equal. Each flow has a virtual time that grows by the device time its steps are
//! estimated to take, divided by its weight; the flow with the least goes next. A flow that comes back after it was empty
//! starts at the present virtual time, so that nobody saves up turns. The class `critical` goes before all others.
//! Within a client the larger priority goes first, then the earlier arrival.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::WorkerId;
use super::demand::DemandId;
use super::flows::ClassFlows;
use crate::processing::job::Class;
use crate::processing::job::StepKey;

/// Virtual time: microseconds of device time at weight 1.
pub(super) type VirtualMicros = u64;

/// The most that a flow may lag behind the present while its steps are blocked: it catches up by so much and no more, so
/// that its return does not hold up everybody else.
pub(super) const CREDIT_MOST: VirtualMicros = 60_000_000;

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
pub(super) type Order = (Reverse<i32>, StepKey);

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
    /// Demands whose steps have come or gone since [`take_changed`](Self::take_changed).
    changed: FxHashSet<DemandId>,
}

/// The waiting steps of a demand.
#[derive(Debug, Default)]
struct Waiting {
    steps: BTreeSet<StepKey>,
    by_class: [usize; Class::COUNT],
}

/// What waits with a demand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct WaitingWith {
    pub(super) steps: usize,
    /// The same, where one of each class counts by its share of device time.
    pub(super) by_share: f64,
    /// One of them.
    pub(super) example: StepKey,
}

/// Asks that are worth a look, by class.
#[derive(Debug, Default)]
pub(crate) struct Asks([FxHashSet<Ask>; Class::COUNT]);

impl Asks {
    /// Leaves out what is not worth a look.
    pub(crate) fn retain(&mut self, is_worth_a_look: impl Fn(Class, Ask) -> bool) {
        for (asks, class) in self.0.iter_mut().zip(Class::ALL) {
            asks.retain(|ask| is_worth_a_look(class, *ask));
        }
    }

    /// Leaves out an ask in every class.
    pub(crate) fn remove(&mut self, ask: Ask) {
        for asks in &mut self.0 {
            asks.remove(&ask);
        }
    }
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
        self.changed.insert(key.demand);
        let waiting = self.by_demand.entry(key.demand).or_default();
        waiting.steps.insert(step);
        waiting.by_class[key.class as usize] += 1;
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
        self.changed.insert(key.demand);
        if let Some(waiting) = self.by_demand.get_mut(&key.demand) {
            waiting.steps.remove(&step);
            waiting.by_class[key.class as usize] -= 1;
            if waiting.steps.is_empty() {
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

    /// What the waiting steps ask for, where it is worth a look.
    pub(crate) fn asks(&self, is_worth_a_look: impl Fn(Class, Ask) -> bool) -> Asks {
        let mut all = Asks::default();
        for ((asks, class), flows) in all.0.iter_mut().zip(Class::ALL).zip(&self.classes) {
            asks.extend(flows.asks().filter(|ask| is_worth_a_look(class, *ask)));
        }
        all
    }

    /// Grows whenever an ask comes that nobody had.
    pub(crate) fn asks_come(&self) -> u64 {
        self.classes.iter().map(ClassFlows::asks_come).sum()
    }

    /// The step whose turn it is, of those with one of these asks.
    pub(crate) fn next_of(&mut self, asks: &Asks) -> Option<Head> {
        let mut order: [(VirtualMicros, usize); Class::COUNT] = std::array::from_fn(|index| {
            let turn = self.classes.get(index).map_or(0, |class| class.turn);
            match Class::ALL.get(index) {
                Some(Class::Critical) => (0, index),
                _ => (turn.saturating_add(1), index),
            }
        });
        order.sort_unstable();
        order.into_iter().find_map(|(_, index)| {
            let (flows, asks) = self.classes.get_mut(index).zip(asks.0.get(index))?;
            flows.next_of(asks)
        })
    }

    /// The step whose turn it is, of those whose ask is not blocked.
    #[cfg(test)]
    pub(crate) fn next(&mut self, is_blocked: impl Fn(Ask) -> bool) -> Option<Head> {
        let asks = self.asks(|_, ask| !is_blocked(ask));
        self.next_of(&asks)
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
        flows.correct(client, |finish| shift(finish, 4));
    }

    /// How many steps wait that have a demand.
    pub(crate) fn waiting_with(&self, demand: DemandId) -> usize {
        self.by_demand
            .get(&demand)
            .map_or(0, |waiting| waiting.steps.len())
    }

    /// The steps that wait with a demand.
    pub(super) fn waiting_of(&self, demand: DemandId) -> Option<WaitingWith> {
        let Waiting { steps, by_class } = self.by_demand.get(&demand)?;
        let shares = Class::ALL.iter().zip(by_class);
        Some(WaitingWith {
            steps: steps.len(),
            by_share: shares.map(|(class, steps)| class.share() * *steps as f64).sum(),
            example: *steps.last()?,
        })
    }

    /// The demands of all waiting steps.
    pub(super) fn demands(&self) -> impl Iterator<Item = DemandId> + '_ {
        self.by_demand.keys().copied()
    }

    /// The demands whose steps have come or gone since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<DemandId> {
        self.changed.drain().collect()
    }

    /// Whether a step of a class waits.
    pub(crate) fn has(&self, class: Class) -> bool {
        let class = self.classes.get(class as usize);
        class.is_some_and(|class| !class.is_empty())
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
        self.classes.iter().map(ClassFlows::clients).sum()
    }

    fn set_head(&mut self, key: &LaneKey, before: Option<Order>, after: Option<Order>) {
        let class_now = self.now;
        let Some(class) = self.classes.get_mut(key.class as usize) else {
            return;
        };
        let was_empty = class.is_empty();
        class.set_head(key, before, after);
        if was_empty && !class.is_empty() {
            // A class that comes back starts now; a later correction counts from there.
            class.finish = class.finish.max(class_now);
            class.turn = class.finish;
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

    fn next_client(lanes: &mut Lanes) -> Option<String> {
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
        assert_eq!(next_client(&mut lanes).as_deref(), Some("other"));
        lanes.charge(&other, 500_000);
        assert_eq!(next_client(&mut lanes).as_deref(), Some("busy"));
    }

    #[test]
    fn the_example_of_a_demand_is_a_step_that_waits() {
        let (mut lanes, demand) = (Lanes::default(), DemandId::none());
        lanes.push(&key("early", demand), 0, StepKey(1));
        lanes.push(&key("late", demand), 0, StepKey(2));
        lanes.remove(&key("late", demand), 0, StepKey(2));
        let waiting = lanes.waiting_of(demand).expect("one is left");
        assert_eq!((waiting.steps, waiting.example), (1, StepKey(1)));
    }

    #[test]
    fn waiting_steps_count_by_the_shares_of_their_classes() {
        let (mut lanes, demand) = (Lanes::default(), DemandId::none());
        let of = |class| LaneKey {
            class,
            ..key("anyone", demand)
        };
        lanes.push(&of(Class::Interactive), 0, StepKey(1));
        lanes.push(&of(Class::Batch), 0, StepKey(2));
        lanes.push(&of(Class::Background), 0, StepKey(3));
        let by_share = |lanes: &Lanes| lanes.waiting_of(demand).map(|waiting| waiting.by_share);
        assert_eq!(by_share(&lanes), Some(1.375));
        lanes.remove(&of(Class::Batch), 0, StepKey(2));
        assert_eq!(by_share(&lanes), Some(1.125));
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
