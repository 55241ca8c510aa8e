// How the search ranks pages: the values of Sphinx, but guides come before the changelog and pages about the code.
var Scorer = {
  score: ([page, , , , score]) =>
    score - (/^(changelog|architecture|benchmarks|emulated-model|migrating)$/.test(page) ? 3 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
