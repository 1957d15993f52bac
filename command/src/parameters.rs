//! Parameters that change while the scheduler runs.
//!
//! The scheduler thread must not wait, so no lock is between it and the threads that change
//! parameters: all that it needs is packed into one word, which it compares with the last one
//! before each turn. Whatever it reads is a whole set of parameters, so the word needs no order
//! with anything else.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use scx_metronome_core::wait::Wait;

/// Slices are within, in µs.
pub(crate) const SLICE_US: RangeInclusive<u64> = 100..=1_000_000;

/// By its standing orders a task may have so many fair shares.
pub(crate) const BOOST: RangeInclusive<u32> = 1..=16;

/// What a user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Short slices; answers before throughput.
    #[default]
    Gaming,
    /// In between.
    Balanced,
    /// The scheduler thread sleeps whenever it can, and tasks run long.
    Powersave,
    /// Long slices.
    Throughput,
    /// One of the others, by the power profile.
    Auto,
}

/// All parameters, as they are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) slice_us: u64,
    pub(crate) slice_us_min: u64,
    pub(crate) wait: Wait,
    pub(crate) boost: u32,
}

impl Parameters {
    const SLICE_BITS: u32 = 20;
    const SLICE_MASK: u64 = (1 << Self::SLICE_BITS) - 1;
    const WAIT_BITS: u32 = 2;
    const WAIT_MASK: u64 = (1 << Self::WAIT_BITS) - 1;

    fn pack(self) -> u64 {
        let wait = match self.wait {
            Wait::Spin => 0,
            Wait::Adaptive => 1,
            Wait::Park => 2,
        };
        let slices = self.slice_us | self.slice_us_min << Self::SLICE_BITS;
        let rest = wait | u64::from(self.boost) << Self::WAIT_BITS;
        slices | rest << (2 * Self::SLICE_BITS)
    }

    fn unpack(word: u64) -> Self {
        let rest = word >> (2 * Self::SLICE_BITS);
        Self {
            slice_us: word & Self::SLICE_MASK,
            slice_us_min: word >> Self::SLICE_BITS & Self::SLICE_MASK,
            wait: match rest & Self::WAIT_MASK {
                0 => Wait::Spin,
                1 => Wait::Adaptive,
                _ => Wait::Park,
            },
            boost: (rest >> Self::WAIT_BITS) as u32,
        }
    }
}

// Every slice fits into its bits.
const _: () = assert!(*SLICE_US.end() <= Parameters::SLICE_MASK);

impl fmt::Display for Parameters {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            slice_us,
            slice_us_min,
            wait,
            boost,
        } = self;
        write!(
            out,
            "slice-us={slice_us} slice-us-min={slice_us_min} wait={wait} boost={boost}"
        )
    }
}

impl Profile {
    /// What it stands for. `power` is asked which one an automatic profile is.
    fn parameters(self, power: impl FnOnce() -> Self) -> Parameters {
        let (slice_us, slice_us_min, wait, boost) = match self {
            Self::Gaming => (20_000, 1_000, Wait::Adaptive, 8),
            Self::Balanced => (20_000, 2_000, Wait::Adaptive, 4),
            Self::Powersave => (40_000, 4_000, Wait::Park, 1),
            Self::Throughput => (40_000, 4_000, Wait::Adaptive, 1),
            // It never names itself.
            Self::Auto => return power().parameters(Self::default),
        };
        Parameters {
            slice_us,
            slice_us_min,
            wait,
            boost,
        }
    }
}

/// What was asked for: a profile, and what shall differ from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) profile: Profile,
    pub(crate) slice_us: Option<u64>,
    pub(crate) slice_us_min: Option<u64>,
    pub(crate) wait: Option<Wait>,
    pub(crate) boost: Option<u32>,
}

impl Request {
    /// A shortest slice that is longer than the longest is cut to it.
    pub(crate) fn parameters(&self, power: impl FnOnce() -> Profile) -> Parameters {
        let profile = self.profile.parameters(power);
        let slice_us = self.slice_us.unwrap_or(profile.slice_us);
        Parameters {
            slice_us,
            slice_us_min: self
                .slice_us_min
                .unwrap_or(profile.slice_us_min)
                .min(slice_us),
            wait: self.wait.unwrap_or(profile.wait),
            boost: self.boost.unwrap_or(profile.boost),
        }
    }

    /// A profile replaces everything that was asked for before.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Profile(profile) => {
                *self = Self {
                    profile,
                    ..Self::default()
                }
            }
            Change::SliceUs(us) => self.slice_us = Some(us),
            Change::SliceUsMin(us) => self.slice_us_min = Some(us),
            Change::Wait(wait) => self.wait = Some(wait),
            Change::Boost(boost) => self.boost = Some(boost),
        }
    }
}

/// A change, as it is written: `slice-us=2000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Profile(Profile),
    SliceUs(u64),
    SliceUsMin(u64),
    Wait(Wait),
    Boost(u32),
}

impl Change {
    pub(crate) fn new(key: &str, value: &str) -> Result<Self, String> {
        let slice = || match value.parse() {
            Ok(us) if SLICE_US.contains(&us) => Ok(us),
            _ => Err(format!(
                "{key} must be a number from {} to {}, not {value:?}",
                SLICE_US.start(),
                SLICE_US.end()
            )),
        };
        match key {
            "slice-us" => slice().map(Self::SliceUs),
            "slice-us-min" => slice().map(Self::SliceUsMin),
            "wait" => Wait::from_str(value)
                .map(Self::Wait)
                .map_err(|error| format!("wait {error}, not {value:?}")),
            "boost" => match value.parse() {
                Ok(boost) if BOOST.contains(&boost) => Ok(Self::Boost(boost)),
                _ => Err(format!(
                    "boost must be a number from {} to {}, not {value:?}",
                    BOOST.start(),
                    BOOST.end()
                )),
            },
            "profile" => <Profile as clap::ValueEnum>::from_str(value, false)
                .map(Self::Profile)
                .map_err(|_| {
                    format!(
                        "profile must be gaming, balanced, powersave, throughput or auto, not {value:?}"
                    )
                }),
            _ => Err(format!(
                "there is no parameter {key:?}: slice-us, slice-us-min, wait, boost, profile"
            )),
        }
    }
}

impl Change {
    /// As it is written.
    pub(crate) fn pair(&self) -> (String, String) {
        let (key, value) = match self {
            Self::Profile(profile) => {
                let value = clap::ValueEnum::to_possible_value(profile);
                let name = value.map(|value| value.get_name().to_owned());
                ("profile", name.unwrap_or_default())
            }
            Self::SliceUs(us) => ("slice-us", us.to_string()),
            Self::SliceUsMin(us) => ("slice-us-min", us.to_string()),
            Self::Wait(wait) => ("wait", wait.to_string()),
            Self::Boost(boost) => ("boost", boost.to_string()),
        };
        (key.to_owned(), value)
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) => Self::new(key, value),
            None => Err("must be KEY=VALUE".to_owned()),
        }
    }
}

/// The parameters, between the threads that change them and the scheduler thread.
#[derive(Debug)]
pub(crate) struct Shared {
    request: Mutex<Request>,
    word: AtomicU64,
    power: fn() -> Profile,
}

impl Shared {
    pub(crate) fn new(request: Request, power: fn() -> Profile) -> Self {
        Self {
            request: Mutex::new(request),
            word: AtomicU64::new(request.parameters(power).pack()),
            power,
        }
    }

    /// All of `changes` or, if one is none, not any.
    pub(crate) fn change(&self, changes: &[Change]) -> Parameters {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        let is_profile = |change: &&Change| matches!(change, Change::Profile(_));
        for change in changes.iter().filter(is_profile) {
            request.apply(*change);
        }
        for change in changes.iter().filter(|change| !is_profile(change)) {
            request.apply(*change);
        }
        let parameters = request.parameters(self.power);
        // ORDERING: relaxed, with the load in `current`: the word is all there is.
        self.word.store(parameters.pack(), Ordering::Relaxed);
        parameters
    }

    /// Looks at the power profile anew.
    pub(crate) fn follow_power(&self) -> Parameters {
        self.change(&[])
    }

    /// # Cost
    /// A load.
    pub(crate) fn word(&self) -> u64 {
        // ORDERING: relaxed, with the store in `change`.
        self.word.load(Ordering::Relaxed)
    }

    pub(crate) fn current(&self) -> Parameters {
        Parameters::unpack(self.word())
    }
}

/// The scheduler thread's end: the parameters, whenever they are others than before.
#[derive(Debug)]
pub(crate) struct News<'a> {
    shared: &'a Shared,
    seen: u64,
}

impl<'a> News<'a> {
    /// What is in force at this moment is no news.
    pub(crate) fn new(shared: &'a Shared) -> (Self, Parameters) {
        let seen = shared.word();
        (Self { shared, seen }, Parameters::unpack(seen))
    }

    /// # Cost
    /// A load.
    pub(crate) fn get(&mut self) -> Option<Parameters> {
        let word = self.shared.word();
        (word != self.seen).then(|| {
            self.seen = word;
            Parameters::unpack(word)
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn changes(text: &str) -> Vec<Change> {
        text.split(' ').map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn every_set_of_parameters_survives_its_way_through_the_word() {
        for slice_us in [100, 20_000, 1_000_000] {
            for slice_us_min in [100, 1_000_000] {
                for wait in [Wait::Spin, Wait::Adaptive, Wait::Park] {
                    for boost in [*BOOST.start(), *BOOST.end()] {
                        let parameters = Parameters {
                            slice_us,
                            slice_us_min,
                            wait,
                            boost,
                        };
                        assert_eq!(Parameters::unpack(parameters.pack()), parameters);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_change_is_refused_in_words() {
        for (text, reason) in [
            ("slice-us", "KEY=VALUE"),
            ("slice=1", "no parameter \"slice\""),
            ("slice-us=99", "from 100 to 1000000"),
            ("slice-us-min=-1", "slice-us-min must be"),
            ("slice-us=1000001", "not \"1000001\""),
            ("wait=nap", "spin, adaptive or park"),
            ("boost=0", "from 1 to 16"),
            ("profile=fast", "gaming"),
        ] {
            let error = text.parse::<Change>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_profile_replaces_what_was_asked_for_before_and_gives_way_to_what_comes_with_it() {
        let request = Request {
            slice_us: Some(5_000),
            ..Request::default()
        };
        let shared = Shared::new(request, Profile::default);
        let (mut news, first) = News::new(&shared);
        assert_eq!((first.slice_us, first.wait), (5_000, Wait::Adaptive));
        assert_eq!(news.get(), None);
        shared.change(&changes("wait=spin profile=powersave"));
        let now = news.get().unwrap();
        assert_eq!((now.slice_us, now.wait), (40_000, Wait::Spin));
        assert_eq!(news.get(), None);
    }

    #[test]
    fn a_shortest_slice_is_never_longer_than_the_longest() {
        let shared = Shared::new(Request::default(), Profile::default);
        let now = shared.change(&changes("slice-us=500"));
        assert_eq!((now.slice_us, now.slice_us_min), (500, 500));
    }

    #[test]
    fn an_automatic_profile_follows_the_power_profile() {
        let request = Request {
            profile: Profile::Auto,
            ..Request::default()
        };
        let park = Shared::new(request, || Profile::Powersave).follow_power();
        assert_eq!(park.wait, Wait::Park);
        let game = Shared::new(request, || Profile::Gaming).follow_power();
        assert_eq!(
            game,
            Request::default().parameters(|| unreachable!("not automatic"))
        );
    }
}
