//! Virtual time, as the kernel side keeps it.

/// The kernel side's virtual time, between two looks at it: records are read together, and of each
/// what counts is the virtual time of the moment of which it tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelClock {
    /// Real and virtual time of the look before, and the virtual time of this one, ns.
    real: u64,
    from: u64,
    to: u64,
    /// Virtual time per real time in between, in 1/65,536.
    pace: u64,
    /// Real time of this look, ns.
    read_at: u64,
}

impl KernelClock {
    /// The longest time between two looks in which it is taken to run evenly, ns.
    const EVEN: u64 = 1 << 30;

    pub(super) const fn standing(now: u64, real: u64) -> Self {
        Self {
            real,
            from: now,
            to: now,
            pace: 0,
            read_at: real,
        }
    }

    /// The next look.
    pub(super) fn read(&self, now: u64, real: u64) -> Self {
        let passed = real.saturating_sub(self.read_at);
        let moved = now.wrapping_sub(self.to);
        if !(1..Self::EVEN).contains(&passed) || moved >= Self::EVEN {
            return Self::standing(now, real);
        }
        Self {
            real: self.read_at,
            from: self.to,
            pace: (moved << 16) / passed,
            ..Self::standing(now, real)
        }
    }

    /// Virtual time at this real time.
    pub(super) fn at(&self, real: u64) -> u64 {
        let passed = real.saturating_sub(self.real).min(Self::EVEN);
        let now = self
            .from
            .wrapping_add(passed.saturating_mul(self.pace) >> 16);
        if before(self.to, now) { self.to } else { now }
    }
}

/// As the kernel's `time_before64()`.
pub(super) fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}
