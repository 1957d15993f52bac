//! The schedulers that are compared.

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// In file names.
    pub(crate) id: &'static str,
    /// In tables.
    pub(crate) title: &'static str,
    /// What it is.
    pub(crate) kind: Kind,
}

/// How a scheduler comes to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The kernel's own, nothing attached.
    Default,
    /// The kernel's own, with the load's latency-sensitive threads in SCHED_FIFO: the limit that
    /// privileges can reach.
    Fifo,
    /// This project's.
    Metronome,
    /// A published crate at this version, of the same name as its program.
    Peer(&'static str),
}

const fn peer(id: &'static str, version: &'static str) -> Scheduler {
    Scheduler {
        id,
        title: id,
        kind: Kind::Peer(version),
    }
}

/// All of them, in the order of turns and of tables.
pub(crate) static SCHEDULERS: [Scheduler; 11] = [
    Scheduler {
        id: "eevdf",
        title: "EEVDF",
        kind: Kind::Default,
    },
    Scheduler {
        id: "fifo",
        title: "FIFO",
        kind: Kind::Fifo,
    },
    Scheduler {
        id: "scx_metronome",
        title: "scx_metronome",
        kind: Kind::Metronome,
    },
    peer("scx_rustland", "1.1.4"),
    peer("scx_rlfifo", "1.1.4"),
    peer("scx_bpfland", "1.1.4"),
    peer("scx_lavd", "1.1.4"),
    peer("scx_cosmos", "1.1.7"),
    peer("scx_flash", "1.1.4"),
    peer("scx_pandemonium", "5.23.1"),
    peer("scx_cake", "1.2.2"),
];

impl Scheduler {
    /// The one with this id.
    #[must_use]
    pub(crate) fn find(id: &str) -> Option<&'static Self> {
        SCHEDULERS.iter().find(|scheduler| scheduler.id == id)
    }

    /// Whether a program is attached.
    #[must_use]
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.kind, Kind::Metronome | Kind::Peer(_))
    }
}
