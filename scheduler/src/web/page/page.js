'use strict';
// What is shown comes from jobs and tenants, who may be hostile: it is put in as text, never as markup. Nothing here
// parses it, and `el` is the only way by which anything gets into the document.
const el = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === 'grow') node.style.flexGrow = value;
    else if (name === 'width') node.style.width = value;
    else if (name === 'height') node.style.height = value;
    else node.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
};
const $ = id => document.getElementById(id);
const root = document.documentElement;
const main = $('main');

const number = n => n.toLocaleString('en');
const time = us => {
  if (us < 1000) return us + ' µs';
  if (us < 100000) return (us / 1000).toFixed(1) + ' ms';
  if (us < 1e6) return Math.round(us / 1000) + ' ms';
  if (us < 6e7) return (us / 1e6).toFixed(1) + ' s';
  const s = Math.round(us / 1e6), units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = units.findIndex(([size]) => s >= size);
  const [[size, name], next] = [units[first], units[first + 1]];
  const rest = next ? Math.floor(s % size / next[0]) : 0;
  return Math.floor(s / size) + ' ' + name + (rest ? ' ' + rest + ' ' + next[1] : '');
};
const bytes = n => {
  const unit = n < 1024 ? 0 : n < 1048576 ? 1 : n < 1073741824 ? 2 : 3;
  return (unit ? (n / 1024 ** unit).toFixed(1) : n) + ' ' + ['B', 'KiB', 'MiB', 'GiB'][unit];
};
const clock = (ms, exact) => {
  const date = new Date(ms), two = n => String(n).padStart(2, '0');
  const text = two(date.getHours()) + ':' + two(date.getMinutes()) + ':' + two(date.getSeconds());
  return exact ? text + '.' + String(date.getMilliseconds()).padStart(3, '0') : text;
};
const words = name => name.replaceAll('_', ' ');
const short = image => image.replace(/@sha256:([0-9a-f]{8})[0-9a-f]*/, ' $1');
const jobLink = job => el('a', {
  href: '/job/' + encodeURIComponent(job.tenant) + '/' + encodeURIComponent(job.id), title: job.tenant + '/' + job.id,
}, el('span', { class: 'soft' }, job.tenant + '/'), job.id);
const card = (title, note, size, ...children) =>
  el('section', { class: 'card ' + size }, el('h2', {}, title, el('span', {}, note || '')), children);
const none = text => el('p', { class: 'quiet' }, text);
const state = (text, kind) => {
  $('state').textContent = text;
  $('state').className = 'pill ' + kind;
};
const kindOf = outcome => outcome === 'succeeded' ? 'good' : outcome === 'cancelled' ? '' : 'bad';

// ---- the overview

const figure = (title, value, unit) =>
  el('div', { class: 'card figure' }, el('h2', {}, title), el('b', {}, value, unit ? el('small', {}, unit) : null));

const throughput = now => {
  const most = Math.max(1, ...now.per_second);
  // The second that has just begun would only look like a fall.
  const whole = now.per_second.slice(-11, -1);
  const rate = whole.reduce((sum, n) => sum + n, 0) / whole.length;
  return el('div', { class: 'card figure wide' },
    el('h2', {}, 'Throughput', el('span', {}, (rate < 10 ? rate.toFixed(1) : Math.round(rate)) + ' jobs/s over 10 s')),
    el('div', { class: 'spark', role: 'img', 'aria-label': 'jobs that ended in each of the last 60 seconds' },
      now.per_second.map(n => el('i', { class: n ? 'some' : '', height: Math.max(6, n / most * 100) + '%', title: n }))));
};

const tier = now => {
  const sum = name => now.kinds.reduce((all, kind) => all + kind[name], 0);
  const states = ['leased', 'ready', 'making', 'quarantined'].map(name => [name, sum(name)]);
  const kinds = now.kinds.map(kind => short(kind.image) + ' ' + bytes(kind.limits.memory)).join(', ');
  const shown = states.filter(([name, count]) => count || name === 'ready' || name === 'leased');
  const said = now.resting ? (now.resting.tries ? 'rests: ' : 'refused: ') + now.resting.why
    : sum('waiting') ? 'waiting for one: ' + sum('waiting') : kinds;
  return el('div', { class: now.offered ? 'tier' : 'tier off' },
    el('div', { class: 'head' }, el('b', {}, now.tier),
      now.offered
        ? el('span', { class: 'counts' }, shown.map(([name, count]) => el('span', {}, el('em', {}, count), name)),
          el('span', { class: 'narrow-off' }, el('em', {}, sum('target')), 'wanted'))
        : el('span', { class: 'counts' }, 'not offered here')),
    now.offered ? el('div', { class: 'bar' },
      states.filter(([, count]) => count).map(([name, count]) =>
        el('i', { class: 'k-' + name, grow: count, title: count + ' ' + name }))) : null,
    now.offered && said ? el('div', { class: 'kinds', title: said }, said) : null,
    now.offered && now.tested ? el('div', { class: 'kinds', title: now.tested.said + ', at ' + clock(now.tested.at_ms) },
      el('span', { class: 'dot ' + (now.tested.holds ? 'k-ready' : 'k-quarantined') }), 'selftest at ' + clock(now.tested.at_ms) + ': '
        + now.tested.said.replace(now.tier + ': ', '')) : null);
};

const running = now => card('Running', now.running_in_all > now.running.length
  ? 'the longest ' + now.running.length + ' of ' + now.running_in_all : '', 'w4',
now.running.length ? el('table', {},
  el('thead', {}, el('tr', {}, el('th', {}, 'job'), el('th', { class: 'c-s' }, 'tier'), el('th', { class: 'c-m' }, 'phase'),
    el('th', { class: 'c-s num' }, 'time'))),
  el('tbody', {}, now.running.flatMap(job => [
    el('tr', {}, el('td', { class: 'mono' }, jobLink(job.job)), el('td', {}, job.tier),
      el('td', {}, el('span', { class: 'dot p-' + job.phase }), job.phase), el('td', { class: 'num' }, time(job.elapsed_us))),
    job.waits_for ? el('tr', {}, el('td', { class: 'wrap why', colspan: 4 }, job.waits_for)) : null,
  ].filter(Boolean)))) : none('nothing runs'));

const waiting = now => card('Waiting', now.waiting_in_all ? number(now.waiting_in_all) + ' jobs' : '', 'w2',
  now.waiting.length ? now.waiting.map(lane => el('div', { class: 'item' },
    el('div', { class: 'head' }, el('span', {}, (lane.tenant || 'jobs') + (lane.tier ? ' on ' + lane.tier : '')
      + (lane.high ? ', high' : '')), el('b', {}, number(lane.jobs))),
    el('div', { class: 'why' }, lane.why))) : none('nothing waits'));

const latency = now => {
  const most = Math.max(1, ...now.phases.map(phase => phase.p95_us));
  // From 10 µs on, each width the same factor.
  const width = us => Math.max(1.5, Math.log(Math.max(us, 10) / 10) / Math.log(Math.max(most, 100) / 10) * 100) + '%';
  return card('Latency by phase', 'p50 / p95 of the latest jobs', '',
    now.phases.length ? now.phases.map(phase => el('div', { class: 'phase' }, el('span', {}, phase.phase),
      el('div', { class: 'track' }, el('i', { class: 'p-' + phase.phase, width: width(phase.p95_us) }),
        el('i', { class: 'p-' + phase.phase, width: width(phase.p50_us) })),
      el('span', {}, el('b', {}, time(phase.p50_us)), ' / ' + time(phase.p95_us)))) : none('no job has ended yet'));
};

const outcomes = now => card('Outcomes', now.retries ? number(now.retries) + ' given another sandbox' : '', '',
  now.outcomes.length ? [
    el('div', { class: 'bar' }, now.outcomes.map(([name, count]) => el('i', { class: 'o-' + name, grow: count }))),
    el('div', { class: 'legend' }, now.outcomes.map(([name, count]) =>
      el('span', {}, el('span', { class: 'dot o-' + name }), words(name), el('em', {}, number(count)))))]
    : none('no job has ended yet'));

const tenants = now => card('Tenants', now.tenants_in_all > now.tenants.length
  ? 'the busiest ' + now.tenants.length + ' of ' + now.tenants_in_all : '', '',
now.tenants.length ? el('table', {},
  el('thead', {}, el('tr', {}, el('th', {}, ''), ['running', 'waiting', 'ended', 'failed'].map(name =>
    el('th', { class: 'c-s num' + (name === 'ended' ? ' narrow-off' : '') }, name)))),
  el('tbody', {}, now.tenants.map(tenant => el('tr', {}, el('td', { title: tenant.tenant }, tenant.tenant),
    el('td', { class: 'num' }, number(tenant.running), tenant.most === null ? null : el('span', { class: 'quiet' }, '/' + tenant.most)),
    el('td', { class: 'num' }, number(tenant.waiting)), el('td', { class: 'num narrow-off' }, number(tenant.ended)),
    el('td', { class: 'num' }, number(tenant.failed)))))) : none('none so far'));

const failures = now => card('Last failures', '', 'w3', now.failures.length
  ? now.failures.slice(0, 12).map(job => el('div', { class: 'item' },
    el('div', { class: 'head' }, el('span', { class: 'mono' }, el('span', { class: 'dot o-' + job.outcome }), jobLink(job.job)),
      el('span', {}, words(job.outcome) + ' · ' + clock(job.at_ms))),
    job.why ? el('div', { class: 'why' }, job.why) : null)) : none('none so far'));

const recent = now => card('Ended lately', '', '', now.recent.length ? el('table', {},
  el('thead', {}, el('tr', {}, el('th', {}, 'job'), el('th', { class: 'c-s narrow-off' }, 'tier'),
    el('th', { class: 'c-s narrow-off' }, 'sandbox'), el('th', { class: 'c-s num' }, 'took'), el('th', { class: 'c-s num' }, 'at'))),
  el('tbody', {}, now.recent.slice(0, 12).map(job => el('tr', {},
    el('td', { class: 'mono' }, el('span', { class: 'dot o-' + job.outcome, title: words(job.outcome) }), jobLink(job.job)),
    el('td', { class: 'narrow-off' }, job.tier || '–'), el('td', { class: 'narrow-off' }, job.source || '–'),
    el('td', { class: 'num' }, time(job.took_us)), el('td', { class: 'num soft' }, clock(job.at_ms)))))) : none('none so far'));

const introduce = who => {
  $('who').textContent = [who.verb, who.host, who.release && 'version ' + who.release, 'pid ' + who.pid].filter(Boolean).join(' · ');
};

const overview = now => {
  introduce(now.who);
  document.title = 'mayfly · ' + (now.who.host || now.who.verb);
  $('who').textContent += ' · up ' + time(now.up_us);
  if (now.stopping) state('stopping', 'hold');
  else if (now.unready.length) state('not ready', 'bad');
  else state('ready', 'good');
  main.replaceChildren(...now.unready.map(why => el('p', { class: 'notice' }, why)),
    el('div', { class: 'figures' },
      figure('Running', number(now.running_in_all), ' of ' + now.slots), figure('Waiting', number(now.waiting_in_all)),
      figure('Ended', number(now.ended), now.who.total === null ? '' : ' of ' + number(now.who.total)),
      figure('Warm', now.warm_share === null ? '–' : Math.round(now.warm_share * 100), now.warm_share === null ? '' : ' %'),
      throughput(now)),
    el('div', { class: 'grid' },
      card('Sandboxes', 'of each tier', 'w3', now.tiers.map(tier)),
      el('div', { class: 'stack w3' }, outcomes(now), tenants(now)),
      running(now), waiting(now), el('div', { class: 'stack w3' }, latency(now), recent(now)), failures(now)));
  root.dataset.state = 'live';
};

// ---- one job

const KEPT = 200000;
const output = { node: null, letters: 0, said: false, pending: [], due: null };

const append = (node, kind, text) => {
  const last = node.lastElementChild;
  if (last && last.className === kind && last.textContent.length < 4096) last.append(text);
  else node.append(el('span', { class: kind }, text));
  output.letters += text.length;
  while (output.letters > KEPT && node.childElementCount > 1) {
    output.letters -= node.firstElementChild.textContent.length;
    node.firstElementChild.remove();
  }
};
// Where the end is, is asked once for many pieces: a job that writes much would keep the browser at nothing else.
const flush = () => {
  const { node } = output;
  clearTimeout(output.due);
  output.due = null;
  const atEnd = node.scrollHeight - node.scrollTop - node.clientHeight < 40;
  for (const [kind, text] of output.pending.splice(0)) append(node, kind, text);
  if (atEnd) node.scrollTop = node.scrollHeight;
};
const write = (kind, text) => {
  output.pending.push([kind, text]);
  output.due ??= setTimeout(flush, 100);
};

const PHASES = ['queued', 'checkout', 'stage', 'run', 'collect', 'clean'];
const timeline = card_ => {
  const { result, running } = card_;
  const phases = result ? PHASES.map(name => [name, result.phases[name + '_us']]).filter(([, us]) => us)
    : running ? running.times_us : [];
  if (!phases.length) return none(card_.waiting_for ? 'it waits' : 'no phase was reached');
  const all = phases.reduce((sum, [, us]) => sum + us, 0);
  return [el('div', { class: 'line' }, phases.map(([name, us], place) => el('div', {
    class: 'p-' + name + (running && !result && place === phases.length - 1 ? ' on' : ''), grow: Math.max(us / all, .004), title: name + ' ' + time(us),
  }))), el('div', { class: 'legend' }, phases.map(([name, us]) =>
    el('span', {}, el('span', { class: 'dot p-' + name }), name, el('em', {}, time(us)))))];
};

const pairs = list => el('dl', {}, list.filter(([, value]) => value !== null && value !== undefined && value !== '')
  .flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));

const outcome = result => {
  const { usage, error } = result;
  const ended = result.exit_code !== null ? 'exit code ' + result.exit_code
    : result.signal !== null ? 'signal ' + result.signal : null;
  return card('Result', 'seen by the ' + result.observed_by, '', [
    error ? el('div', { class: 'item' }, el('b', {}, error.what), el('div', { class: 'why' }, error.why),
      el('div', { class: 'why' }, '→ ' + error.what_to_do)) : null,
    el('div', { class: 'item' }, pairs([
      ['outcome', words(result.outcome)], ['ended by', ended], ['attempt', result.attempt],
      ['sandbox', result.source && (result.tier + ', ' + result.source + (result.cold_reason ? ' (' + result.cold_reason + ')' : ''))],
      ['accelerator', result.accel], ['image', result.image && short(result.image)],
      ['CPU time', usage && time(usage.cpu_us)], ['peak memory', usage && bytes(usage.peak_memory_bytes)],
      ['OOM kills', usage && usage.oom_kills ? usage.oom_kills : null],
      ['stdout', bytes(result.stdout.bytes) + (result.stdout.truncated ? ', cut' : '')],
      ['stderr', bytes(result.stderr.bytes) + (result.stderr.truncated ? ', cut' : '')]])),
    result.notes.map(note => el('div', { class: 'item why' }, note))]);
};

const artifacts = (job, result) => card('Artifacts', result.artifacts.length ? number(result.artifacts.length) : '', '',
  result.artifacts.length ? [el('table', {}, el('tbody', {}, result.artifacts.map(file => el('tr', {},
    el('td', { class: 'mono', title: file.path }, file.path), el('td', { class: 'c-m num' }, bytes(file.size)),
    el('td', { class: 'c-s mono soft narrow-off', title: 'sha256:' + file.sha256 }, file.sha256.slice(0, 8)))))),
  el('p', { class: 'quiet' }, 'fetch them by ', el('code', {}, 'mayfly result ' + job.tenant + '/' + job.id + ' --get DIR'))]
    : none('it left none'),
  result.skipped.map(file => el('div', { class: 'item' }, el('span', { class: 'mono' }, file.path), el('div', { class: 'why' }, file.reason))));

const ENDED = { closed: 'done', failed: 'broken off', refused: 'refused', job_ended: 'open to the job’s end' };
const reached = egress => {
  const reasons = Object.entries(egress.reasons || {}), asked = egress.made + egress.refused;
  return card('Reached outside', number(egress.made) + ' made, ' + number(egress.refused) + ' refused', '',
    el('div', { class: 'item' }, pairs([['sent', bytes(egress.sent)], ['received', bytes(egress.received)],
      ['refused', reasons.map(([reason, times]) => reason + ' ' + number(times)).join(', ')]])),
    egress.connections.map(it => el('div', { class: 'item' },
      el('div', { class: 'head' }, el('span', { class: 'mono', title: it.to },
        el('span', { class: 'dot e-' + it.ended }), it.to),
      el('span', {}, ENDED[it.ended] + (it.reason ? ' · ' + it.reason : ''))),
      it.address ? el('div', { class: 'why' }, it.via + ' to ' + it.address + ' · ' + bytes(it.sent) + ' sent, '
        + bytes(it.received) + ' received · ' + time(it.open_us)) : null,
      it.why ? el('div', { class: 'why' }, (it.address ? '' : it.via + ' · ') + it.why) : null)),
    asked > egress.connections.length ? none('and ' + number(asked - egress.connections.length) + ' more') : null,
    asked ? null : none('it asked for nothing'));
};

const STORY = {
  clean: 'found clean', consumed: 'given to this job, and to no other', destroyed: 'destroyed', reverted: 'reverted: this life is over',
  quarantined: 'could not be ended, and is set aside', crashed: 'ended by a crash of its host process',
};
const story = card_ => card('Its sandbox’s story', 'from the ledger of this node', '',
  card_.story_trouble ? none(card_.story_trouble) : card_.story.length ? el('ol', { class: 'story' }, card_.story.map(line =>
    el('li', { class: line.what }, el('div', {}, STORY[line.what] || line.what),
      el('div', { class: 'why mono' }, clock(line.at_ms, true) + '  ' + line.generation.slice(0, 12) + (line.detail ? '  ' + short(line.detail) : '')))))
    : none('the ledger of this node knows none'));

const PRE = el('pre', { tabindex: '0', 'aria-label': 'output' });
const oneJob = (key, now) => {
  document.title = key.id + ' · mayfly';
  if (now === null) {
    state('unknown', '');
    main.replaceChildren(none('no job ' + key.tenant + '/' + key.id + ' is known here'));
    return;
  }
  const { result, running } = now;
  const said = result ? words(result.outcome) : now.state === 'over' ? words(now.outcome) : running ? running.phase : now.state;
  const kind = result || now.state === 'over' ? kindOf(result ? result.outcome : now.outcome) : running ? 'busy' : 'hold';
  state(said, kind);
  const tier_ = result ? result.tier : running && running.tier;
  const image = result ? result.image : running && running.image;
  const facts = [['tier', tier_], ['image', image && short(image)], ['attempt', result ? result.attempt : running && running.attempt],
    ['generation', result && result.generation && result.generation.slice(0, 12)], ['for', running && !result && time(running.elapsed_us)]];
  const why = now.waiting_for || (running && running.waits_for);
  output.node = PRE;
  main.replaceChildren(
    el('div', { class: 'title' }, el('h1', {}, el('span', { class: 'soft' }, key.tenant + '/'), key.id)),
    el('p', { class: 'facts' }, facts.filter(([, value]) => value).map(([name, value]) => el('span', {}, name + ' ', el('b', {}, value)))),
    ...(why ? [el('p', { class: 'notice' }, why)] : []),
    el('div', { class: 'grid' },
      card('Timeline', '', 'w6', timeline(now)),
      el('div', { class: 'stack w4' }, card('Output', 'as text: ^[ and its like are control characters', '', PRE),
        result && result.egress ? reached(result.egress) : null, result ? artifacts(key, result) : null),
      el('div', { class: 'stack w2' }, result ? outcome(result) : null, story(now))));
};

// ---- what is heard

const hear = (path, listeners) => {
  let source;
  const open = () => {
    source = new EventSource(path);
    source.onopen = () => listeners.open && listeners.open();
    for (const [name, heard] of Object.entries(listeners)) {
      if (name !== 'open') source.addEventListener(name, event => heard(JSON.parse(event.data), source));
    }
    source.onerror = () => {
      state('not connected', 'bad');
      root.dataset.state = 'lost';
      // The browser tries again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 5000);
    };
  };
  open();
};

const named = location.pathname.match(/^\/job\/([^/]+)\/([^/]+)$/);
if (named) {
  const key = { tenant: decodeURIComponent(named[1]), id: decodeURIComponent(named[2]) };
  let last = null;
  hear('/events/' + named[1] + '/' + named[2], {
    open() {
      PRE.replaceChildren();
      Object.assign(output, { node: PRE, letters: 0, said: false, pending: [] });
    },
    job(now) {
      last = now;
      oneJob(key, now);
      root.dataset.state = 'live';
    },
    attempt(which) { if (which > 1) write('note', '\nattempt ' + which + '\n'); },
    output(piece) { output.said = true; write(piece.stream, piece.text); },
    missing(gap) { write('note', '\n' + bytes(gap.bytes) + ' of ' + gap.stream + ' are not shown\n'); },
    enough(most) { write('note', '\nmore than ' + bytes(most) + ' is not shown here\n'); },
    trouble(why) { write('note', '\n' + why + '\n'); },
    end(_, source) {
      source.close();
      // What it wrote may be too long ago to be followed: its result has it.
      if (last && last.result && !output.said) {
        write('stdout', last.result.stdout.text);
        write('stderr', last.result.stderr.text);
      }
      flush();
      root.dataset.state = 'over';
    },
  });
} else {
  hear('/events', { moment: overview });
}
