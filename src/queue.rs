//! The deadline queue: which task runs next.
//!
//! The scheduler thread holds every task that waits for a decision and must name the one with the
//! earliest deadline at once, when a CPU asks. Tasks also leave from the middle (they exit, or the
//! kernel side rescues them) and change their deadline while they wait, and none of this may
//! allocate.
//!
//! Two structures from the standard library come close. `BTreeSet<(u64, u32)>` removes from the
//! middle, but it allocates and frees nodes as it goes, and a change of deadline is two walks that
//! begin with knowing the old one. `BinaryHeap` keeps to its buffer, but it cannot find an entry,
//! so it can neither remove nor update one; marking entries dead and skipping them later lets the
//! dead fill the buffer.
//!
//! The crate `heapless`, which holds the other fixed-capacity collections of the scheduler thread,
//! has two that come close, too. Its `BinaryHeap` cannot find an entry either, and lets equal ones
//! leave in any order. Its `Vec` could hold the nodes, but where they begin in it is its own
//! affair: siblings would no longer share a cache line, and all bytes zero be no promise of an
//! empty queue.
//!
//! [`DeadlineQueue`] is a 4-ary heap with an index. Ids are dense, so "where in the heap is this
//! task?" is an array element, which each move in the heap keeps true. Four children make the tree
//! half as deep as two do, and the four lie in one cache line, so a level costs one line. A node is
//! lifted out, the others move into the hole that it leaves, and it is put down once: nothing is
//! swapped. What leaves the heap is replaced from the bottom: the hole sinks to a leaf
//! without looking at the last node, which then rises from there, because the last node nearly
//! always belongs near the bottom.
//!
//! # Order
//!
//! Deadlines are `u64` nanoseconds of virtual time and may wrap. `a` is before `b` if
//! `a.wrapping_sub(b)` is negative as an `i64`, as in the kernel's `time_before64()`. That is an
//! order only while **all deadlines in the queue lie within 2^63 ns (292 years) of each other**; if
//! they do not, entries come out in some other order, but none is lost.
//!
//! Equal deadlines leave in the order in which they came. Each arrival takes a sequence number,
//! which shares a word with the id: for 65,536 ids it has 48 bits, which ten million arrivals a
//! second use up in 325 days. Then it begins anew, and what arrives after that leaves before those
//! of its equals that waited. Nothing else depends on it.
//!
//! # Cost
//!
//! A pop and a push each touch one line per level; from some thousand entries on, those lines come
//! from the second-level cache. `cargo bench --bench queue` says how long both together take at 64,
//! 4,096 and 65,536 entries, beside the standard library's structures.
//!
//! # Limits
//!
//! Room for `N` ids, 20 bytes each: 1.25 MiB for 65,536. The worst push, which rises to the top,
//! and each pop visit all levels: 3 for 64 entries, 8 for 65,536. One thread owns the queue. It
//! does not iterate in order.
//!
//! # Where it lives
//!
//! A queue of this size must not be built on the stack and then moved. All bytes zero are a valid,
//! empty queue, so it lies in fresh mapped memory (`Turn`), in zeroed memory of a box, or, if it is
//! a `static` that is initialised with [`DeadlineQueue::new`], in `.bss`.
#![deny(clippy::indexing_slicing)]

use core::fmt;
use core::hint::select_unpredictable;
use core::mem::offset_of;

use crate::prefetch::prefetch;

/// Children of a node. Four nodes are one cache line.
const ARITY: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A task and its deadline, as they come out of a [`DeadlineQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The task's dense id, `0..N`.
    pub id: u32,
    /// When it is due, in ns of virtual time; wraps.
    pub deadline: u64,
}

/// Why [`DeadlineQueue::push`] did not take a task.
///
/// "Full" is not among the reasons: there is room for each of the `N` ids, and none is in the queue
/// twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The task is in the queue already and keeps its deadline and place; [`DeadlineQueue::update`]
    /// changes them.
    Present,
    /// The id is not below the queue's capacity.
    OutOfRange,
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Present => "the task is in the queue already",
            Self::OutOfRange => "the task id is not below the queue's capacity",
        })
    }
}

impl core::error::Error for PushError {}

/// An entry and its place among equals: two words, as the compiler then moves them in registers.
#[derive(Clone, Copy)]
#[repr(C)]
struct Node {
    deadline: u64,
    /// The number of its arrival above, the id in the low [`DeadlineQueue::ID_BITS`]. As the
    /// number decides, the id may be compared along.
    arrival: u64,
}

const _: () = assert!(size_of::<Node>() * ARITY == LINE);

impl Node {
    const ZERO: Self = Self {
        deadline: 0,
        arrival: 0,
    };

    /// Whether `self` leaves first: the sign of one subtraction, two words wide, whose upper word
    /// is `time_before64()`. No branch, as the answer is a coin toss for the predictor.
    #[inline(always)]
    fn before(&self, other: &Self) -> bool {
        let wide = |node: &Self| u128::from(node.deadline) << 64 | u128::from(node.arrival);
        wide(self).wrapping_sub(wide(other)).cast_signed() < 0
    }
}

/// The earlier of two indexed nodes, by conditional moves: a select between references would add a
/// load to the chain.
#[inline(always)]
fn earlier(a: (usize, Node), b: (usize, Node)) -> (usize, Node) {
    let second = b.1.before(&a.1);
    let node = Node {
        deadline: select_unpredictable(second, b.1.deadline, a.1.deadline),
        arrival: select_unpredictable(second, b.1.arrival, a.1.arrival),
    };
    (select_unpredictable(second, b.0, a.0), node)
}

/// A priority queue of the task ids `0..N`, earliest deadline first; see the [module's page](self).
///
/// All bytes zero are a valid and empty queue; this is part of the interface.
#[repr(C, align(64))]
pub struct DeadlineQueue<const N: usize> {
    /// Nodes in the heap, at most `N`.
    len: usize,
    /// The number of the next arrival; only its low `64 - ID_BITS` bits count, which wrap.
    next_arrival: u64,
    /// Puts the root at the end of a cache line, and so each group of siblings into a line of its
    /// own.
    pad: [u64; 4],
    /// The heap is the first `len` nodes: no node is before its parent. Those behind are
    /// left-overs.
    nodes: [Node; N],
    /// For each id, 0 if it is absent, else 1 + the index of its node.
    places: [u32; N],
}

const _: () =
    assert!((offset_of!(DeadlineQueue<5>, nodes) + size_of::<Node>()).is_multiple_of(LINE));

/// What every owner needs.
impl<const N: usize> DeadlineQueue<N> {
    /// An empty queue, for use in a `static`; elsewhere the value, 20 bytes for each id, may pass
    /// over the stack.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(N <= u32::MAX as usize, "ids are u32") };
        Self {
            len: 0,
            next_arrival: 0,
            pad: [0; 4],
            nodes: [Node::ZERO; N],
            places: [0; N],
        }
    }

    /// Adds a task that is not in the queue, behind all others of the same deadline (ns of virtual
    /// time).
    ///
    /// # Errors
    ///
    /// [`PushError::OutOfRange`] if `id >= N`, [`PushError::Present`] if the task is in the queue.
    /// Nothing changes.
    ///
    /// # Cost
    ///
    /// A line for each level that the task rises, in the mean about one. No allocation.
    #[inline]
    pub fn push(&mut self, id: u32, deadline: u64) -> Result<(), PushError> {
        match self.places.get(id as usize) {
            None => return Err(PushError::OutOfRange),
            Some(0) => {}
            Some(_) => return Err(PushError::Present),
        }
        let node = self.arrival(id, deadline);
        let leaf = self.len;
        self.len += 1;
        self.rise(leaf, node);
        Ok(())
    }

    /// Takes the earliest entry out.
    ///
    /// # Cost
    ///
    /// A line and three comparisons for each level of the tree: 3 levels for 64 entries, 8 for
    /// 65,536. No allocation.
    #[inline]
    pub fn pop(&mut self) -> Option<Entry> {
        self.take(0)
    }

    /// The earliest entry, which stays.
    #[inline]
    #[must_use]
    pub fn peek(&self) -> Option<Entry> {
        self.heap().first().map(Self::entry)
    }

    /// Takes the task out, wherever it is; `None` if it is not in the queue or `id >= N`.
    ///
    /// # Cost
    ///
    /// As [`Self::pop`], and less the further down the task is. No allocation.
    #[inline]
    pub fn remove(&mut self, id: u32) -> Option<Entry> {
        self.take(self.find(id)?)
    }

    /// Gives a waiting task a new deadline (ns of virtual time); `false`, and nothing changes, if
    /// it is not in the queue or `id >= N`.
    ///
    /// This is an arrival: the task goes behind all others of that deadline, even if it had the
    /// same one before.
    ///
    /// # Cost
    ///
    /// To an earlier deadline a line for each level that the task rises; to a later one as
    /// [`Self::remove`]. No allocation.
    #[inline]
    pub fn update(&mut self, id: u32, deadline: u64) -> bool {
        let Some(at) = self.find(id) else {
            return false;
        };
        let node = self.arrival(id, deadline);
        self.replace(at, node);
        true
    }
}

/// What is needed soon.
impl<const N: usize> DeadlineQueue<N> {
    /// Has the line fetched that the next push or update of this id, which is any number, needs.
    #[inline]
    pub fn prefetch(&self, id: u32) {
        prefetch(self.places.get(id as usize));
    }

    /// The entry that is the earliest after the first.
    ///
    /// # Cost
    ///
    /// A line, three comparisons.
    #[inline]
    #[must_use]
    pub fn second(&self) -> Option<Entry> {
        self.earliest_child(0).map(|(_, node)| Self::entry(&node))
    }
}

/// What is in it, and upkeep.
impl<const N: usize> DeadlineQueue<N> {
    /// How many tasks are in the queue, `0..=N`.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no task is in the queue.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entry> + '_ {
        self.heap().iter().map(Self::entry)
    }
}

/// The heap. A hole is an index below `len` whose node has been lifted out and is put down
/// elsewhere.
///
/// Each index in here is below `len` and each id below `N`, so the `None` of a `get` never comes;
/// it is there instead of a panic.
impl<const N: usize> DeadlineQueue<N> {
    /// As many as the highest id needs.
    const ID_BITS: u32 = usize::BITS - N.saturating_sub(1).leading_zeros();
    const ID_MASK: u64 = (1 << Self::ID_BITS) - 1;

    #[inline]
    fn heap(&self) -> &[Node] {
        self.nodes.get(..self.len).unwrap_or_default()
    }

    /// The index of the task's node.
    #[inline]
    fn find(&self, id: u32) -> Option<usize> {
        let place = *self.places.get(id as usize)?;
        place.checked_sub(1).map(|at| at as usize)
    }

    #[inline]
    fn id(node: &Node) -> u32 {
        (node.arrival & Self::ID_MASK) as u32
    }

    #[inline]
    fn entry(node: &Node) -> Entry {
        Entry {
            id: Self::id(node),
            deadline: node.deadline,
        }
    }

    /// A node that is the newest.
    #[inline]
    fn arrival(&mut self, id: u32, deadline: u64) -> Node {
        let number = self.next_arrival;
        self.next_arrival = number.wrapping_add(1);
        Node {
            deadline,
            arrival: number << Self::ID_BITS | u64::from(id),
        }
    }

    /// Takes the node at `at` out; the last one goes where that leaves room.
    #[inline]
    fn take(&mut self, at: usize) -> Option<Entry> {
        let taken = *self.heap().get(at)?;
        let last = *self.heap().last()?;
        self.len -= 1;
        if at < self.len {
            self.replace(at, last);
        }
        let id = Self::id(&taken);
        if let Some(place) = self.places.get_mut(id as usize) {
            *place = 0;
        }
        Some(Self::entry(&taken))
    }

    /// Puts `node` into the heap instead of the node at `at`.
    #[inline]
    fn replace(&mut self, at: usize, node: Node) {
        let is_earlier = self.nodes.get(at).is_some_and(|old| node.before(old));
        let hole = if is_earlier { at } else { self.sink(at) };
        self.rise(hole, node);
    }

    /// Lets the hole sink to a leaf, the earliest child moving up at each level, and says where it
    /// ended.
    #[inline]
    fn sink(&mut self, mut hole: usize) -> usize {
        while let Some((child, node)) = self.earliest_child(hole) {
            // Which of its children moves up next is not known yet: theirs are fetched, too.
            let grandchildren = ARITY * (ARITY * child + 1) + 1;
            if grandchildren < self.len {
                for nth in 0..ARITY {
                    prefetch(self.nodes.get(grandchildren + nth * ARITY));
                }
            }
            self.put(hole, node);
            hole = child;
        }
        hole
    }

    /// Lets the hole rise while its parent is after `node`, and puts `node` into it.
    #[inline]
    fn rise(&mut self, mut hole: usize, node: Node) {
        while let Some(below) = hole.checked_sub(1) {
            let parent = below / ARITY;
            match self.nodes.get(parent) {
                Some(&above) if node.before(&above) => self.put(hole, above),
                _ => break,
            }
            hole = parent;
        }
        self.put(hole, node);
    }

    /// Puts `node` into the hole and notes its place.
    #[inline(always)]
    fn put(&mut self, hole: usize, node: Node) {
        if let Some(slot) = self.nodes.get_mut(hole) {
            *slot = node;
        }
        if let Some(place) = self.places.get_mut(Self::id(&node) as usize) {
            *place = hole as u32 + 1;
        }
    }

    /// The earliest child with its index; `None` of a leaf.
    #[inline(always)]
    fn earliest_child(&self, parent: usize) -> Option<(usize, Node)> {
        let first = ARITY * parent + 1;
        if first >= self.len {
            return None;
        }
        if first + ARITY > self.len {
            return self.earliest_of_last(first);
        }
        let &[a, b, c, d] = self.nodes.get(first..)?.first_chunk::<ARITY>()?;
        let left = earlier((0, a), (1, b));
        let right = earlier((2, c), (3, d));
        let (nth, node) = earlier(left, right);
        Some((first + nth, node))
    }

    /// The same for the heap's last group, which is incomplete and begins at `first`.
    #[inline]
    fn earliest_of_last(&self, first: usize) -> Option<(usize, Node)> {
        let siblings = self.heap().get(first..)?.iter().copied();
        (first..).zip(siblings).reduce(earlier)
    }
}

impl<const N: usize> Default for DeadlineQueue<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for DeadlineQueue<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What the queue must do: a list, in the order in which entries leave.
    #[derive(Default)]
    struct Model(Vec<Entry>);

    impl Model {
        fn push(&mut self, id: u32, deadline: u64) {
            let later = |e: &Entry| e.deadline.wrapping_sub(deadline).cast_signed() > 0;
            let at = self.0.iter().position(later).unwrap_or(self.0.len());
            self.0.insert(at, Entry { id, deadline });
        }

        fn remove(&mut self, id: u32) -> Option<Entry> {
            let at = self.0.iter().position(|e| e.id == id)?;
            Some(self.0.remove(at))
        }

        fn pop(&mut self) -> Option<Entry> {
            (!self.0.is_empty()).then(|| self.0.remove(0))
        }

        fn find(&self, id: u32) -> Option<Entry> {
            self.0.iter().copied().find(|e| e.id == id)
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Push(u32, u64),
        Update(u32, u64),
        Remove(u32),
        Pop,
    }

    /// Operations on ids up to a few past `ids`, with deadlines that all lie within 2^63 of each
    /// other but anywhere on the circle, its seams included, and are often equal.
    fn ops(ids: u32) -> impl Strategy<Value = Vec<Op>> {
        let base = prop_oneof![
            Just(u64::MAX - 3),
            Just(i64::MAX as u64 - 3),
            Just(0),
            any::<u64>()
        ];
        let offset = prop_oneof![3 => 0..8_u64, 1 => 0..1_u64 << 62];
        let id = 0..ids + 3;
        let op = prop_oneof![
            12 => (id.clone(), offset.clone()).prop_map(|(id, at)| Op::Push(id, at)),
            4 => (id.clone(), offset).prop_map(|(id, at)| Op::Update(id, at)),
            3 => id.prop_map(Op::Remove),
            5 => Just(Op::Pop),
        ];
        (base, prop::collection::vec(op, 0..300)).prop_map(|(base, mut ops)| {
            for op in &mut ops {
                if let Op::Push(_, at) | Op::Update(_, at) = op {
                    *at = base.wrapping_add(*at);
                }
            }
            ops
        })
    }

    /// As [`ops`], but on a queue that all ids have entered, in any order.
    fn ops_when_full(ids: u32) -> impl Strategy<Value = Vec<Op>> {
        let all = Just((0..ids).collect::<Vec<_>>()).prop_shuffle();
        (all, ops(ids), any::<u64>()).prop_map(|(all, ops, base)| {
            let near = |op: &Op| match op {
                Op::Push(_, at) | Op::Update(_, at) => Some(*at),
                _ => None,
            };
            let base = ops.iter().find_map(near).unwrap_or(base);
            let push = |id: u32| Op::Push(id, base.wrapping_add(u64::from(id % 5)));
            all.into_iter().map(push).chain(ops).collect()
        })
    }

    fn check<const N: usize>(queue: &DeadlineQueue<N>, model: &Model) {
        assert_eq!(queue.len(), model.0.len());
        assert_eq!(queue.is_empty(), model.0.is_empty());
        assert_eq!(queue.peek(), model.0.first().copied());
        assert_eq!(queue.second(), model.0.get(1).copied());
        let mut entries: Vec<_> = queue.iter().map(|e| (e.id, e.deadline)).collect();
        let mut expected: Vec<_> = model.0.iter().map(|e| (e.id, e.deadline)).collect();
        entries.sort_unstable();
        expected.sort_unstable();
        assert_eq!(entries, expected);
    }

    fn run<const N: usize>(ops: &[Op]) {
        let mut queue = DeadlineQueue::<N>::new();
        let mut model = Model::default();
        for &op in ops {
            match op {
                Op::Push(id, deadline) => {
                    let expected = if id as usize >= N {
                        Err(PushError::OutOfRange)
                    } else if model.find(id).is_some() {
                        Err(PushError::Present)
                    } else {
                        model.push(id, deadline);
                        Ok(())
                    };
                    assert_eq!(queue.push(id, deadline), expected);
                }
                Op::Update(id, deadline) => {
                    let present = model.remove(id).is_some();
                    if present {
                        model.push(id, deadline);
                    }
                    assert_eq!(queue.update(id, deadline), present);
                }
                Op::Remove(id) => assert_eq!(queue.remove(id), model.remove(id)),
                Op::Pop => assert_eq!(queue.pop(), model.pop()),
            }
            check(&queue, &model);
        }
        drain(&mut queue, model.0);
        check(&queue, &Model::default());
    }

    fn drain<const N: usize>(queue: &mut DeadlineQueue<N>, expected: Vec<Entry>) {
        let left: Vec<_> = core::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(left, expected);
    }

    fn fill<const N: usize>(queue: &mut DeadlineQueue<N>, entries: &[(u32, u64)]) {
        for &(id, deadline) in entries {
            assert_eq!(queue.push(id, deadline), Ok(()));
        }
    }

    fn ids<const N: usize>(queue: &mut DeadlineQueue<N>) -> Vec<u32> {
        core::iter::from_fn(|| queue.pop()).map(|e| e.id).collect()
    }

    proptest! {
        #[test]
        fn any_sequence_of_operations_does_what_a_sorted_list_does(ops in ops(13)) {
            run::<13>(&ops);
        }

        #[test]
        fn so_does_a_deeper_tree(ops in ops(90)) {
            run::<90>(&ops);
        }

        #[test]
        fn so_does_a_full_queue(ops in ops_when_full(90)) {
            run::<90>(&ops);
        }

        #[test]
        fn so_do_the_smallest_queues(ops in ops(2)) {
            run::<0>(&ops);
            run::<1>(&ops);
            run::<2>(&ops);
        }
    }

    #[test]
    fn the_earliest_deadline_leaves_first() {
        let mut queue = DeadlineQueue::<8>::new();
        fill(&mut queue, &[(3, 30), (1, 10), (4, 40), (2, 20)]);
        assert_eq!(ids(&mut queue), [1, 2, 3, 4]);
    }

    #[test]
    fn equal_deadlines_leave_in_order_of_arrival_whatever_their_ids() {
        let mut queue = DeadlineQueue::<8>::new();
        fill(
            &mut queue,
            &[(7, 5), (0, 5), (6, 5), (1, 5), (5, 5), (2, 5), (4, 1)],
        );
        assert_eq!(ids(&mut queue), [4, 7, 0, 6, 1, 5, 2]);
    }

    #[test]
    fn a_deadline_past_the_wrap_is_later() {
        let mut queue = DeadlineQueue::<4>::new();
        fill(
            &mut queue,
            &[(0, 5), (1, u64::MAX), (2, 0), (3, u64::MAX - 9)],
        );
        assert_eq!(ids(&mut queue), [3, 1, 2, 0]);
    }

    #[test]
    fn an_update_to_the_same_deadline_goes_behind_its_equals() {
        let mut queue = DeadlineQueue::<4>::new();
        fill(&mut queue, &[(0, 5), (1, 5), (2, 5)]);
        assert!(queue.update(0, 5));
        assert_eq!(ids(&mut queue), [1, 2, 0]);
    }

    #[test]
    fn a_second_push_is_refused_and_changes_nothing() {
        let mut queue = DeadlineQueue::<4>::new();
        fill(&mut queue, &[(0, 5), (1, 5)]);
        assert_eq!(queue.push(0, 9), Err(PushError::Present));
        drain(
            &mut queue,
            [0, 1].map(|id| Entry { id, deadline: 5 }).into(),
        );
    }

    #[test]
    fn an_id_out_of_range_is_refused_everywhere() {
        let mut queue = DeadlineQueue::<4>::new();
        for id in [4, 5, u32::MAX] {
            assert_eq!(queue.push(id, 0), Err(PushError::OutOfRange));
            assert!(!queue.update(id, 0));
            assert_eq!(queue.remove(id), None);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn all_ids_fit_at_once() {
        let mut queue = DeadlineQueue::<100>::new();
        fill(
            &mut queue,
            &core::array::from_fn::<_, 100, _>(|i| (i as u32, 99 - i as u64)),
        );
        assert_eq!(queue.len(), 100);
        assert_eq!(ids(&mut queue), (0..100).rev().collect::<Vec<_>>());
    }

    #[test]
    fn after_the_arrivals_are_used_up_deadlines_still_decide() {
        let mut queue = DeadlineQueue::<4>::new();
        queue.next_arrival = u64::MAX - 1;
        fill(&mut queue, &[(3, 4), (2, 3), (1, 2), (0, 1)]);
        assert_eq!(ids(&mut queue), [0, 1, 2, 3]);
    }

    #[test]
    fn a_new_queue_is_what_zero_bytes_are() {
        let queue = DeadlineQueue::<3>::new();
        assert_eq!((queue.len, queue.next_arrival, queue.pad), (0, 0, [0; 4]));
        assert!(
            queue
                .nodes
                .iter()
                .all(|n| (n.deadline, n.arrival) == (0, 0))
        );
        assert_eq!(queue.places, [0; 3]);
    }
}
