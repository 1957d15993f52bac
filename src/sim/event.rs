//! What can happen to a simulated machine.

/// One thing that happens. Numbers of tasks and CPUs that do not exist stand for some that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A task wakes; one that has exited starts again, as another task of the same id.
    Wake(u32),
    /// The task that runs on a CPU goes to sleep.
    Sleep(u32),
    /// The task that runs on a CPU is at the end of its slice.
    SliceEnds(u32),
    /// A CPU looks for work although it was not kicked.
    Look(u32),
    /// The tick of a CPU: what runs there gives way if a decided task that waits has an earlier
    /// deadline.
    Tick(u32),
    /// A task that does not run exits.
    Exit(u32),
    /// A task may from then on use only the CPUs whose number, counted on from the first, has its
    /// bit set in the mask (which repeats every 16 CPUs). A mask without a CPU that takes tasks
    /// means all.
    SetAffinity(u32, u16),
    /// A task gets a weight.
    SetWeight(u32, u16),
    /// The scheduler thread takes a turn.
    Turn,
    /// The kernel side finds that the scheduler thread has been silent for longer than its budget,
    /// and begins fallback if a task waits for it.
    Late,
    /// The kernel side looks whether the scheduler thread, found late before, has caught up in a
    /// turn since, and asks it again if so.
    Back,
    /// Virtual time passes, µs.
    Pass(u16),
    /// The next record stays busy, as if its producer were interrupted.
    Hold,
    /// The record that is held is published.
    Release,
    /// A record is reserved and given up.
    Discard(u32),
    /// A fault: a byte of a ring is overwritten, at an offset that is taken modulo its size.
    Scribble(u32, u8),
    /// A fault: the producer position of a ring is wrong by this much for one turn.
    Misplace(i32),
}

impl Event {
    /// Whether a healthy kernel does no such thing.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Scribble(..) | Self::Misplace(_))
    }

    /// Makes an event of any four bytes: for fuzzers and property tests.
    pub fn decode([kind, a, b, c]: [u8; 4]) -> Self {
        let wide = u16::from_le_bytes([b, c]);
        let task = u32::from(a) | u32::from(c & 0x0f) << 8;
        let cpu = u32::from(a) | u32::from(b) << 8;
        match kind % 32 {
            0..=5 => Self::Wake(task),
            6 => Self::Back,
            7 => Self::Late,
            8..=10 => Self::Sleep(cpu),
            11..=13 => Self::SliceEnds(cpu),
            14 => Self::Tick(cpu),
            15 => Self::Look(cpu),
            16 => Self::Exit(task),
            17 => Self::SetAffinity(u32::from(a), wide),
            18 => Self::SetWeight(u32::from(a), wide),
            19..=25 => Self::Turn,
            26 => Self::Pass(wide),
            27 => Self::Hold,
            28 => Self::Release,
            29 => Self::Discard(task),
            30 => Self::Scribble(u32::from(wide), a),
            _ => Self::Misplace(i32::from(wide as i16) * 8),
        }
    }

    /// Events without end, the same for the same seed: what [`decode`](Self::decode) makes of
    /// random bytes.
    pub fn stream(seed: u64) -> impl Iterator<Item = Self> {
        // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): any seed will do.
        let mut state = seed;
        core::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            Self::decode(((mixed ^ mixed >> 31) as u32).to_le_bytes())
        })
    }
}
