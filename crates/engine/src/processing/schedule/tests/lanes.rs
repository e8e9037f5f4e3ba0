//! Laws of fairness and order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::super::demand::{Demand, DemandId, Demands};
use super::super::lanes::{LaneKey, Lanes};
use crate::processing::job::{Class, StepKey};

const SECOND: u64 = 1_000_000;

fn demands(count: u32) -> Vec<DemandId> {
    let mut demands = Demands::default();
    let different = |width| {
        let mut demand = Demand::nothing();
        Arc::make_mut(&mut demand.shape).width = width;
        demand
    };
    (0..count).map(|width| demands.intern(different(width))).collect()
}

fn key(class: Class, client: &str, demand: DemandId) -> LaneKey {
    LaneKey {
        class,
        client: client.into(),
        demand,
        bound_to: None,
    }
}

/// Clients that always have a step waiting, and the device time that each was given.
struct Saturated {
    lanes: Lanes,
    served: BTreeMap<(Class, String), u64>,
    steps: u64,
}

impl Saturated {
    fn new(flows: &[(Class, &str, DemandId)]) -> Self {
        let mut new = Self {
            lanes: Lanes::default(),
            served: BTreeMap::new(),
            steps: 0,
        };
        for (class, client, demand) in flows {
            new.push(&key(*class, client, *demand));
        }
        new
    }

    fn push(&mut self, lane: &LaneKey) {
        self.steps += 1;
        self.lanes.push(lane, 0, StepKey(self.steps));
    }

    /// Serves whoever's turn it is, who comes back at once. `estimate` is what is known before, `took` what it was.
    fn serve(&mut self, estimate: u64, took: u64) -> LaneKey {
        let head = self.lanes.next(|_| false).expect("everybody waits");
        self.lanes.charge(&head.lane, estimate);
        assert!(self.lanes.remove(&head.lane, 0, head.step));
        self.push(&head.lane);
        self.lanes
            .correct(head.lane.class, &head.lane.client, estimate, took);
        *self
            .served
            .entry((head.lane.class, head.lane.client.to_string()))
            .or_insert(0) += took;
        head.lane
    }

    fn of_class(&self, class: Class) -> f64 {
        let flows = self.served.iter().filter(|((of, _), _)| *of == class);
        flows.map(|(_, micros)| *micros as f64).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// Whatever the steps cost, whatever was estimated, and in whatever order the clients came.
    #[test]
    fn classes_share_four_to_one_to_a_half_and_their_clients_equally(
        order in Just(vec![
            (Class::Interactive, "a"), (Class::Interactive, "b"), (Class::Interactive, "c"),
            (Class::Batch, "a"), (Class::Batch, "d"), (Class::Background, "e"), (Class::Background, "f"),
        ]).prop_shuffle(),
        costs in prop::collection::vec((SECOND / 10..5 * SECOND, 1u64..30), 50..200),
    ) {
        let demand = demands(1)[0];
        let flows: Vec<_> = order.iter().map(|(class, client)| (*class, *client, demand)).collect();
        let mut world = Saturated::new(&flows);
        for (estimate, tenths) in costs.iter().cycle().take(20_000) {
            world.serve(*estimate, estimate * tenths / 10);
        }
        let all: f64 = Class::ALL.iter().map(|class| world.of_class(*class)).sum();
        for (class, share) in [(Class::Interactive, 4.0 / 5.5), (Class::Batch, 1.0 / 5.5), (Class::Background, 0.5 / 5.5)] {
            let is = world.of_class(class) / all;
            prop_assert!((is / share - 1.0).abs() < 0.1, "{class:?} has {is}, its share is {share}");
            let clients: Vec<f64> = world.served.iter().filter(|((of, _), _)| *of == class).map(|(_, micros)| *micros as f64).collect();
            let mean = clients.iter().sum::<f64>() / clients.len() as f64;
            prop_assert!(clients.iter().all(|client| (client / mean - 1.0).abs() < 0.1), "{class:?}: {clients:?}");
        }
    }

    /// A client with one large step after the other has no more than one with many small ones.
    #[test]
    fn clients_are_equal_in_device_time_and_not_in_steps(large in 2u64..50) {
        let demand = demands(2);
        let mut world = Saturated::new(&[(Class::Batch, "large", demand[0]), (Class::Batch, "small", demand[1])]);
        for _ in 0..20_000 {
            let head = world.lanes.next(|_| false).expect("both wait");
            let cost = if &*head.lane.client == "large" { large * SECOND } else { SECOND };
            world.serve(cost, cost);
        }
        let [a, b] = ["large", "small"].map(|client| world.served[&(Class::Batch, client.to_owned())] as f64);
        prop_assert!((a / b - 1.0).abs() < 0.1, "{a} {b}");
    }

    /// Pushed, removed and taken in any order, with any keys: `Lanes` has what a plain list has.
    #[test]
    fn no_step_is_lost_or_doubled_and_ranks_are_those_of_a_plain_sort(
        moves in prop::collection::vec((0u8..5, 0usize..4, 0usize..3, 0usize..3, -2i32..3, 0usize..60), 1..200),
    ) {
        let demands = demands(3);
        let mut lanes = Lanes::default();
        let mut plain: BTreeMap<StepKey, (LaneKey, i32)> = BTreeMap::new();
        for (index, (kind, class, client, demand, priority, of)) in moves.into_iter().enumerate() {
            let some = plain.keys().nth(of % plain.len().max(1)).copied();
            match (kind, some) {
                (0 | 1, _) => {
                    let (lane, step) = (key(Class::ALL[class], ["a", "b", "c"][client], demands[demand]), StepKey(1000 - index as u64));
                    lanes.push(&lane, priority, step);
                    // A second time changes nothing.
                    lanes.push(&lane, priority, step);
                    plain.insert(step, (lane, priority));
                }
                (2, Some(step)) => {
                    let (lane, priority) = plain.remove(&step).expect("it is there");
                    prop_assert!(lanes.remove(&lane, priority, step));
                    prop_assert!(!lanes.remove(&lane, priority, step));
                }
                (3, _) => {
                    let head = lanes.next(|_| false);
                    prop_assert_eq!(head.is_none(), plain.is_empty());
                    if let Some(head) = head {
                        let (lane, priority) = plain.remove(&head.step).expect("a step that nobody pushed");
                        prop_assert_eq!(&lane, &head.lane);
                        // Within a client larger priority goes first, then the earlier arrival.
                        let before = plain.iter().filter(|(_, (other, _))| (other.class, &other.client) == (lane.class, &lane.client));
                        for (other, (_, others)) in before {
                            prop_assert!((Reverse(priority), head.step) < (Reverse(*others), *other));
                        }
                        prop_assert!(lane.class == Class::Critical || plain.values().all(|(other, _)| other.class != Class::Critical));
                        lanes.charge(&head.lane, 1 + of as u64 * SECOND);
                        lanes.remove(&head.lane, priority, head.step);
                    }
                }
                (_, Some(_)) => lanes.correct(Class::ALL[class], ["a", "b", "c"][client], of as u64 * SECOND, priority.unsigned_abs().into()),
                (_, None) => {}
            }
            prop_assert_eq!(lanes.len(), plain.len());
            let mut sorted: Vec<_> = plain.iter().map(|(step, (lane, priority))| (lane.class, Reverse(*priority), *step)).collect();
            sorted.sort_unstable();
            prop_assert_eq!(&lanes.ranked(), &sorted);
            for (place, (class, priority, step)) in sorted.iter().enumerate() {
                prop_assert_eq!(lanes.rank(*class, priority.0, *step), place + 1);
            }
            for demand in &demands {
                prop_assert_eq!(lanes.waiting_with(*demand), plain.values().filter(|(lane, _)| lane.demand == *demand).count());
            }
        }
        // Taken one after the other, each comes once.
        let mut taken = BTreeSet::new();
        while let Some(head) = lanes.next(|_| false) {
            prop_assert!(taken.insert(head.step));
            let priority = plain[&head.step].1;
            lanes.charge(&head.lane, SECOND);
            lanes.remove(&head.lane, priority, head.step);
        }
        prop_assert_eq!(taken, plain.into_keys().collect::<BTreeSet<_>>());
    }
}

#[test]
fn critical_steps_go_first_whatever_was_charged() {
    let demand = demands(1)[0];
    let mut lanes = Lanes::default();
    lanes.push(&key(Class::Background, "a", demand), 9, StepKey(1));
    lanes.push(&key(Class::Interactive, "a", demand), 9, StepKey(2));
    for step in 3..100 {
        let lane = key(Class::Critical, "a", demand);
        lanes.push(&lane, 0, StepKey(step));
        let head = lanes.next(|_| false).expect("three wait");
        assert_eq!(head.step, StepKey(step));
        lanes.charge(&lane, 100 * SECOND);
        lanes.remove(&lane, 0, head.step);
    }
}

#[test]
fn a_blocked_ask_is_passed_over_and_the_next_of_the_same_client_goes() {
    let demand = demands(2);
    let mut lanes = Lanes::default();
    lanes.push(&key(Class::Interactive, "a", demand[0]), 0, StepKey(1));
    lanes.push(&key(Class::Interactive, "a", demand[1]), 0, StepKey(2));
    lanes.push(&key(Class::Batch, "a", demand[1]), 0, StepKey(3));
    let mut next = |blocked: &[DemandId]| lanes.next(|ask| blocked.contains(&ask.0)).map(|head| head.step);
    assert_eq!(next(&[]), Some(StepKey(1)));
    assert_eq!(next(&demand[..1]), Some(StepKey(2)));
    assert_eq!(next(&demand), None);
}

#[test]
fn a_client_or_class_that_was_idle_does_not_save_up_turns() {
    let demand = demands(1)[0];
    for (class, client) in [(Class::Batch, "late"), (Class::Interactive, "late")] {
        let mut world = Saturated::new(&[(Class::Batch, "early", demand)]);
        for _ in 0..10_000 {
            world.serve(SECOND, SECOND);
        }
        let late = key(class, client, demand);
        world.push(&late);
        let turns = (0..50).filter(|_| world.serve(SECOND, SECOND) == late).count();
        // Interactive is worth four times as much as batch.
        let most = if class == Class::Batch { 26 } else { 41 };
        assert!(
            (most - 2..=most).contains(&turns),
            "{class:?}: {turns} of 50 turns"
        );
    }
}

#[test]
fn a_correction_of_what_it_ran_before_does_not_let_a_returning_flow_save_up_turns() {
    let demand = demands(1)[0];
    for class in [Class::Batch, Class::Interactive] {
        let mut world = Saturated::new(&[(Class::Batch, "early", demand)]);
        let late = key(class, "late", demand);
        world.lanes.push(&late, 0, StepKey(0));
        world.lanes.charge(&late, SECOND);
        world.lanes.remove(&late, 0, StepKey(0));
        for _ in 0..50 {
            world.serve(SECOND, SECOND);
        }
        // It comes back, and only then the end of its first step is heard, which took a little less than was thought.
        world.push(&late);
        world.lanes.correct(class, "late", SECOND, SECOND * 9 / 10);
        let turns = (0..20).filter(|_| world.serve(SECOND, SECOND) == late).count();
        let most = if class == Class::Batch { 11 } else { 17 };
        assert!(turns <= most, "{class:?}: {turns} of 20 turns");
    }
}

#[test]
fn a_client_that_was_blocked_catches_up_by_a_bound_and_no_more() {
    let demand = demands(2);
    let mut world = Saturated::new(&[
        (Class::Batch, "free", demand[0]),
        (Class::Batch, "blocked", demand[1]),
    ]);
    let blocked = key(Class::Batch, "blocked", demand[1]);
    for _ in 0..200 {
        world.push(&blocked);
    }
    for _ in 0..1_000 {
        let head = world.lanes.next(|ask| ask.0 == demand[1]).expect("one is free");
        world.lanes.charge(&head.lane, SECOND);
        world.lanes.remove(&head.lane, 0, head.step);
        world.push(&head.lane);
    }
    let mut turns = 0;
    while world.serve(SECOND, SECOND) == blocked {
        turns += 1;
        assert!(turns < 1_000, "it holds everybody up");
    }
    assert!((55..=65).contains(&turns), "{turns} seconds");
}

#[test]
fn clients_that_came_once_are_forgotten() {
    let demand = demands(1)[0];
    let mut lanes = Lanes::default();
    for step in 0..20_000 {
        let lane = key(Class::Interactive, &format!("address {step}"), demand);
        lanes.push(&lane, 0, StepKey(step));
        lanes.charge(&lane, SECOND);
        lanes.remove(&lane, 0, StepKey(step));
        lanes.correct(lane.class, &lane.client, SECOND, SECOND);
        assert!(
            lanes.clients() < 4_096,
            "{} clients are remembered after {step}",
            lanes.clients()
        );
    }
}

#[test]
fn equal_demands_are_kept_once_and_as_long_as_somebody_has_them() {
    let mut demands = Demands::default();
    let mut ids: HashMap<u32, DemandId> = HashMap::new();
    for round in 0..3 {
        for width in 0..5 {
            let mut demand = Demand::nothing();
            Arc::make_mut(&mut demand.shape).width = width;
            let id = demands.intern(demand);
            assert!(ids.insert(width, id).is_none_or(|before| before == id), "{round}");
        }
    }
    assert_eq!(demands.len(), 5);
    for (width, id) in &ids {
        assert!(!demands.release(*id) && !demands.release(*id));
        assert_eq!(demands.get(*id).map(|demand| demand.shape.width), Some(*width));
        assert!(demands.release(*id));
        assert!(demands.get(*id).is_none() && !demands.release(*id));
    }
    assert_eq!(demands.len(), 0);
    // An id is used again, for another demand.
    let again = demands.intern(Demand::nothing());
    assert!(ids.values().any(|id| *id == again));
}
