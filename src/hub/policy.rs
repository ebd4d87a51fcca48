//! Which backends a request may go to, best first: a pure function of what is known of them.
//!
//! ```text
//! sieve   speaks the request's dialect -> may have its model -> is not ejected
//! order   no spare one, has the model for sure, its context is large enough
//!         a person or a program waits:  free before full, then cheap before dear
//!         nobody waits:                 cheap before dear, then free before full
//!         the shorter wait, by powers of two
//!         who got the same beginning before: its keys and values may still be there
//! ```
//!
//! A backend that is ejected is asked by its probe alone, except where nobody else is left: then
//! the one that may come back first is tried, for a probe can be wrong and a refusal is certain.

/// What kind of backend it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The engine of this process.
    Local,
    /// Another JetForge.
    Appliance,
    /// A server that speaks OpenAI's words, llama.cpp's perhaps.
    External,
}

impl Kind {
    /// Its word in `/v1/status`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Appliance => "appliance",
            Kind::External => "external",
        }
    }

    /// What a request costs there: nothing here, another's power, perhaps money outside.
    fn cost(self) -> u32 {
        match self {
            Kind::Local => 0,
            Kind::Appliance => 1,
            Kind::External => 2,
        }
    }
}

/// Whose words a request speaks, as far as backends differ in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// OpenAI's, which all speak.
    Openai,
    /// llama.cpp's.
    Llama,
    /// Any other, which only JetForge speaks.
    Own,
}

/// Who waits for the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Haste {
    /// Somebody.
    #[default]
    Now,
    /// Nobody.
    Later,
}

/// What a request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its dialect.
    pub speech: Speech,
    /// The model that it names.
    pub model: Option<String>,
    /// Positions that it is guessed to need, answer included.
    pub n_position: usize,
    /// Who waits.
    pub haste: Haste,
    /// The same for requests with the same beginning.
    pub affinity: u64,
}

/// A model that a backend has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stocked {
    /// Its name, and other names of it.
    pub names: Vec<String>,
    /// Positions of a sequence, where that is known.
    pub n_ctx: Option<usize>,
}

/// How a backend stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// It answers.
    Well,
    /// It is not to be asked before this moment.
    Ejected {
        /// Milliseconds of the hub's clock.
        until_ms: u64,
    },
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The same for a backend at all times.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// How it stands.
    pub standing: Standing,
    /// Whether it is there for when nobody else is, as the program's own small model.
    pub is_spare: bool,
    /// Whether it speaks llama.cpp's words.
    pub speaks_llama: bool,
    /// Its models; `None` as long as it has not told them.
    pub stock: Option<Vec<Stocked>>,
    /// Whether it may have models that it does not list.
    pub may_have_more: bool,
    /// Requests that it answers at once.
    pub n_place: usize,
    /// Requests that are there, waiting ones included.
    pub n_busy: usize,
    /// Usual time to its first word.
    pub first_word_ms: u64,
}

/// Whether a backend has what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Has {
    Surely,
    Perhaps,
    No,
}

impl View {
    fn speaks(&self, speech: Speech) -> bool {
        match speech {
            Speech::Openai => true,
            Speech::Llama => self.kind != Kind::External || self.speaks_llama,
            Speech::Own => self.kind != Kind::External,
        }
    }

    /// Whether the model is there, and whether the request is guessed to fit.
    fn has(&self, need: &Need) -> (Has, bool) {
        let Some(stock) = &self.stock else { return (Has::Perhaps, true) };
        let fits = |model: &Stocked| model.n_ctx.is_none_or(|n_ctx| n_ctx >= need.n_position);
        let Some(name) = &need.model else {
            return (Has::Surely, stock.first().is_none_or(fits));
        };
        let is_it = |own: &String| own.eq_ignore_ascii_case(name);
        match stock.iter().find(|model| model.names.iter().any(is_it)) {
            Some(model) => (Has::Surely, fits(model)),
            None if self.may_have_more => (Has::Perhaps, true),
            None => (Has::No, true),
        }
    }

    fn is_full(&self) -> bool {
        self.n_busy >= self.n_place
    }

    /// The wait to be expected, as a power of two: what is closer than that is taken as equal.
    fn wait(&self) -> u32 {
        let n_place = self.n_place.max(1) as u64;
        let n_ahead = (self.n_busy as u64 + 1).saturating_sub(n_place);
        let rounds = 1 + n_ahead.div_ceil(n_place);
        self.first_word_ms.saturating_mul(rounds).saturating_add(1).ilog2()
    }

    fn order(&self, need: &Need) -> impl Ord + use<> {
        let (has, fits) = self.has(need);
        let (full, cost) = (u32::from(self.is_full()), self.kind.cost());
        let first = match need.haste {
            Haste::Now => (full, cost),
            Haste::Later => (cost, full),
        };
        let is_unknown = self.standing == Standing::Unknown;
        (
            self.is_spare,
            has,
            !fits,
            is_unknown,
            first,
            self.wait(),
            mix(need.affinity ^ mix(self.id)),
        )
    }
}

/// Indices of the backends to be asked, best first; empty if nobody can have what is asked for.
pub fn rank(need: &Need, views: &[View]) -> Vec<usize> {
    let can = |view: &View| view.speaks(need.speech) && view.has(need).0 != Has::No;
    let able: Vec<usize> = (0..views.len()).filter(|&idx| can(&views[idx])).collect();
    let is_out = |idx: usize| match views[idx].standing {
        Standing::Ejected { until_ms } => Some(until_ms),
        Standing::Unknown | Standing::Well => None,
    };
    let mut order: Vec<usize> = able.iter().copied().filter(|&idx| is_out(idx).is_none()).collect();
    order.sort_by_cached_key(|&idx| views[idx].order(need));
    if order.is_empty() {
        order.extend(able.into_iter().min_by_key(|&idx| (is_out(idx), idx)));
    }
    order
}

/// Spreads a number's bits (SplitMix64).
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(id: u64, kind: Kind) -> View {
        let stock = vec![Stocked { names: vec!["coder".into()], n_ctx: Some(4096) }];
        View {
            id,
            kind,
            standing: Standing::Well,
            is_spare: false,
            speaks_llama: false,
            stock: Some(stock),
            may_have_more: false,
            n_place: 2,
            n_busy: 0,
            first_word_ms: 0,
        }
    }

    fn need() -> Need {
        Need {
            speech: Speech::Openai,
            model: Some("coder".to_owned()),
            n_position: 100,
            haste: Haste::Now,
            affinity: 7,
        }
    }

    #[test]
    fn who_waits_gets_a_free_place_and_who_does_not_a_cheap_one() {
        let mut views = [view(0, Kind::External), view(1, Kind::Appliance), view(2, Kind::Local)];
        assert_eq!(rank(&need(), &views), [2, 1, 0], "cost decides between free ones");
        views[2].n_busy = 2;
        assert_eq!(rank(&need(), &views), [1, 0, 2]);
        let later = Need { haste: Haste::Later, ..need() };
        assert_eq!(rank(&later, &views), [2, 1, 0]);
    }

    #[test]
    fn a_spare_one_is_for_when_nobody_else_is_there() {
        let mut views = [view(0, Kind::Local), view(1, Kind::Appliance)];
        views[0].is_spare = true;
        views[1].n_busy = 9;
        assert_eq!(rank(&need(), &views), [1, 0]);
        views[1].standing = Standing::Ejected { until_ms: 4 };
        assert_eq!(rank(&need(), &views), [0]);
    }

    #[test]
    fn a_dialect_and_a_model_are_needed_and_a_context_is_wished_for() {
        let mut views = [view(0, Kind::External), view(1, Kind::Appliance)];
        let own = Need { speech: Speech::Own, ..need() };
        assert_eq!(rank(&own, &views), [1]);
        let llama = Need { speech: Speech::Llama, ..need() };
        views[0].speaks_llama = true;
        assert_eq!(rank(&llama, &views), [1, 0]);
        let other = Need { model: Some("other".to_owned()), ..need() };
        assert_eq!(rank(&other, &views), [] as [usize; 0]);
        views[1].may_have_more = true;
        assert_eq!(rank(&other, &views), [1]);
        let long = Need { n_position: 5000, ..need() };
        views[0].stock = Some(vec![Stocked { names: vec!["Coder".into()], n_ctx: Some(8192) }]);
        assert_eq!(rank(&long, &views), [0, 1], "a guess is no reason to refuse");
    }

    #[test]
    fn the_ejected_are_asked_when_nobody_else_is_left() {
        let mut views = [view(0, Kind::Appliance), view(1, Kind::Appliance)];
        views[0].standing = Standing::Ejected { until_ms: 9 };
        assert_eq!(rank(&need(), &views), [1]);
        views[1].standing = Standing::Ejected { until_ms: 4 };
        assert_eq!(rank(&need(), &views), [1]);
    }

    #[test]
    fn the_same_beginning_goes_to_the_same_place_and_others_spread() {
        let views: Vec<View> = (0..4).map(|id| view(id, Kind::Appliance)).collect();
        let mut n = [0; 4];
        for affinity in 0..400 {
            let need = Need { affinity, ..need() };
            let first = rank(&need, &views)[0];
            assert_eq!(rank(&need, &views)[0], first);
            n[first] += 1;
        }
        assert!(n.iter().all(|n| (50..150).contains(n)), "{n:?}");
    }

    #[test]
    fn a_slow_one_gets_less() {
        let mut views = [view(0, Kind::Appliance), view(1, Kind::Appliance)];
        views[0].first_word_ms = 2000;
        views[1].first_word_ms = 200;
        for affinity in 0..50 {
            assert_eq!(rank(&Need { affinity, ..need() }, &views)[0], 1);
        }
        views[1].n_busy = 2;
        assert_eq!(rank(&need(), &views)[0], 0, "full ones come later");
    }

    fn any_view(id: u64) -> impl Strategy<Value = View> {
        let kinds = [Kind::Local, Kind::Appliance, Kind::External];
        let standing = prop_oneof![
            Just(Standing::Unknown),
            Just(Standing::Well),
            (0u64..100).prop_map(|until_ms| Standing::Ejected { until_ms }),
        ];
        let stock = prop::option::of(prop::collection::vec((0usize..3, 0usize..6000), 0..3));
        (0usize..3, standing, stock, any::<bool>(), any::<bool>(), 0usize..4, 0usize..6, 0u64..9999)
            .prop_map(move |(kind, standing, stock, llama, more, n_place, n_busy, ms)| View {
                id,
                kind: kinds[kind],
                standing,
                is_spare: more && llama,
                speaks_llama: llama,
                stock: stock.map(|stock| {
                    let model = |(name, n_ctx): (usize, usize)| Stocked {
                        names: vec![format!("m{name}")],
                        n_ctx: Some(n_ctx),
                    };
                    stock.into_iter().map(model).collect()
                }),
                may_have_more: more,
                n_place,
                n_busy,
                first_word_ms: ms,
            })
    }

    proptest! {
        #[test]
        fn nobody_is_asked_in_vain_and_nobody_who_can_is_left_out(
            views in prop::collection::vec(any_view(0), 0..6),
            model in prop::option::of(0usize..3),
            speech in 0usize..3,
            later: bool,
        ) {
            let need = Need {
                speech: [Speech::Openai, Speech::Llama, Speech::Own][speech],
                model: model.map(|n| format!("m{n}")),
                n_position: 1000,
                haste: if later { Haste::Later } else { Haste::Now },
                affinity: 1,
            };
            let order = rank(&need, &views);
            let mut unique = order.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), order.len());
            let can = |view: &View| view.speaks(need.speech) && view.has(&need).0 != Has::No;
            prop_assert!(order.iter().all(|&idx| can(&views[idx])));
            let is_in = |view: &View| !matches!(view.standing, Standing::Ejected { .. });
            let n_in = views.iter().filter(|view| can(view) && is_in(view)).count();
            let n_able = views.iter().filter(|view| can(view)).count();
            prop_assert_eq!(order.len(), if n_in > 0 { n_in } else { n_able.min(1) });
        }
    }
}
