use super::{
    Standing, Terms, Told, Tuned,
    sealed::{Manner, Note, Tune},
};
use crate::Fields;

// === impl Manner ===

impl<Req> Manner<Req> for () {
    type Note = ();

    fn terms(&self, _: &Req, terms: Terms) -> Terms {
        terms
    }

    fn note(&self) {}
}

impl<Req, M: Manner<Req>, T: Tune<Req>> Manner<Req> for Tuned<M, T> {
    type Note = M::Note;

    fn terms(&self, request: &Req, terms: Terms) -> Terms {
        self.limit.terms(request, self.tune.tune(request, terms))
    }

    fn note(&self) -> M::Note {
        self.limit.note()
    }
}

impl<Req, M: Manner<Req>> Manner<Req> for Told<M> {
    type Note = (M::Note, Fields);

    fn terms(&self, request: &Req, terms: Terms) -> Terms {
        self.limit.terms(request, terms)
    }

    fn note(&self) -> Self::Note {
        (self.limit.note(), Fields::new(self.name, Standing::None))
    }
}

// === impl Note ===

impl Note for () {
    fn at(self, _: Standing) {}
}

impl<N: Note> Note for (N, Fields) {
    fn at(self, standing: Standing) -> Self {
        (self.0.at(standing), self.1.at(standing))
    }
}
