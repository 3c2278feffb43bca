import time
import worlds
def test_try(services, template, prefect_server):
    t=time.time()
    s = worlds.story(services, template)
    print("story", time.time()-t, s.first, s.second)
    for w in (s.waiting, s.done):
        print(w.ask("select name, seconds, facts from run_steps order by id"))
        print(w.ask("select verdict_id, name, verdict, sentence from checks order by verdict_id, ordinal"))
        print(w.ask("select version_id, subject, images, accuracy from evaluations order by id"))
        print(w.ask("select sha256, state, label, etag from objects where state<>'accepted'"))
    t=time.time()
    c = worlds.clone(s.waiting)
    print("clone", time.time()-t)
    t=time.time()
    p = worlds.begin_night(c); p.join(); print("child", p.exitcode, time.time()-t)
    t=time.time()
    p = worlds.begin_night(c); p.join(); print("child 2 ", p.exitcode, time.time()-t)
    q="select checkpoint_digest from versions order by id"
    print(c.ask(q), s.done.ask(q))
    t=time.time()
    worlds.drop(c); print("drop", time.time()-t)
